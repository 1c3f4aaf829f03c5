"""The rule by which a pass of several epochs ends because its losses no longer improve, judged within the pass."""

from __future__ import annotations

import math
from typing import NamedTuple

# Sums of an epoch's losses, at most 2^15 of them, differ by less than this share of their size if they are added up in
# another order.
MARGIN = 1e-11


class LossRule(NamedTuple):
    """Rule that ends a pass with the `patience`-th epoch in a row that does not improve.

    An epoch improves if its loss, the mean over all rows, is below best - least. Where rounding alone would decide, the
    pass ends with the epoch, too: whoever gave the rule judges the epochs by figures of his own, and may go on. So a
    pass may end earlier than by these figures, and never later.

    >>> rule = LossRule(least=0.1, patience=2, best=1.0)
    >>> [rule.after(loss).waited for loss in (0.8, 0.95, 1.2)]
    [0, 1, 1]
    >>> rule.after(0.9).is_over, rule.after(0.95).after(0.94).is_over
    (True, True)
    >>> rule.after(0.95).best, rule._replace(of_all=True).after(0.95).best
    (1.0, 0.95)
    """

    least: float  # of an improvement
    patience: int  # epochs in a row without improvement
    best: float = math.inf  # loss before the pass
    waited: int = 0  # epochs without improvement before the pass
    of_all: bool = False  # `best` is the least of all losses; False: of those that improved

    @property
    def is_over(self) -> bool:
        """True if the pass is to end."""
        return self.waited >= self.patience

    def after(self, loss: float) -> LossRule:
        """Return the rule after an epoch of this loss."""
        limit, margin = self.best - self.least, 2 * MARGIN * abs(loss)
        if abs(loss - limit) <= margin:
            return self._replace(waited=self.patience)
        improves = loss < limit
        better = improves or (self.of_all and loss < self.best)
        return self._replace(best=loss if better else self.best, waited=0 if improves else self.waited + 1)
