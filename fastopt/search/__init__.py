"""Search for settings of a network, on Optuna: grid, random numbers or its TPE, cross-validated and pruned.

`search` trains networks on arrays over a space of settings; `PruningCallback` ends unpromising trials in an objective
of your own. They need Optuna and scikit-learn: `pip install "fastopt[search]"`.
"""

from __future__ import annotations

from ._pruning import PruningCallback
from ._result import Outcome, SearchResult
from ._search import search
from ._space import Range

__all__ = ["Outcome", "PruningCallback", "Range", "SearchResult", "search"]
