"""Layout of a training table: names and positions of its columns, by which the columns of new tables are found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ._table import listed


@dataclass(frozen=True)
class TableLayout:
    """All columns of a training table.

    width         number of columns
    header        True if the table had a header
    target        position of the target
    target_name   name of the target; None without a header
    target_is_text  True if the target's cells are labels that are read as text
    left_out      positions of columns that were left out
    """

    width: int = 0
    header: bool = False
    target: int | None = None
    target_name: str | None = None
    left_out: tuple[int, ...] = ()
    target_is_text: bool = False

    def locate(
        self, columns: Sequence[tuple[str | None, int]], names: Sequence[str] | None, width: int
    ) -> list[int]:
        """Return the positions of the training table's `columns` (name, position) in a new table.

        names   names of the new table's columns; None if it has no header
        width   its number of columns

        Raises ValueError for missing names, for ambiguous names, and for a number of columns that does not fit.
        """
        if names is None or not self.header:
            return self._by_position([position for _, position in columns], width)
        known = [name or "" for name, _ in columns]
        lacking = [name for name in known if name not in names]
        if lacking:
            raise ValueError(
                f"it lacks the column{'s' * (len(lacking) > 1)} {listed(lacking)}, which the model was trained with; "
                f"its columns are {listed(names)}"
            )
        check_unique(names, [position for position, name in enumerate(names) if name in set(known)])
        return [list(names).index(name) for name in known]

    def locate_target(self, names: Sequence[str] | None, width: int) -> int:
        """Return the position of the target in a new table; ValueError if it has none."""
        if names is not None and self.header and self.target_name is not None:
            if self.target_name not in names:
                raise ValueError(
                    f"it lacks the target's column {self.target_name!r}; its columns are {listed(names)}; "
                    "say which one holds the targets (--target)"
                )
            return list(names).index(self.target_name)
        chosen = self._chosen(width)
        if chosen is None or self.target not in chosen:
            raise ValueError(
                f"it must have {self.width} columns, as the training data, the target's among them; got {width}"
            )
        return chosen.index(self.target)

    def _by_position(self, positions: Iterable[int], width: int) -> list[int]:
        chosen = self._chosen(width)
        if chosen is None:
            widths = sorted({len(layout) for layout in self._layouts()}, reverse=True)
            raise ValueError(
                f"it must have {' or '.join(map(str, widths))} columns, as the training data (with or without its "
                f"target and columns that were left out); got {width}"
            )
        return [chosen.index(position) for position in positions]

    def _chosen(self, width: int) -> list[int] | None:
        """Positions in the training table of the columns of a new table of `width` columns; None if no layout fits."""
        return next((layout for layout in self._layouts() if len(layout) == width), None)

    def _layouts(self) -> list[list[int]]:
        """Columns that a new table may have: all, all but the target, all but those left out, features alone."""
        without: list[Collection[int | None]] = [
            (), (self.target,), self.left_out, (self.target, *self.left_out)
        ]  # fmt: skip
        return [[i for i in range(self.width) if i not in some] for some in without]

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for JSON."""
        return {**asdict(self), "left_out": list(self.left_out)}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> TableLayout:
        """Return the layout of a dict that `to_dict` returned."""
        layout = cls(
            int(saved["width"]),
            bool(saved["header"]),
            saved["target"],
            saved["target_name"],
            tuple(saved["left_out"]),
            bool(saved["target_is_text"]),
        )
        is_name_valid = layout.target_name is None or isinstance(layout.target_name, str)
        positions = [*layout.left_out, *([] if layout.target is None else [layout.target])]
        if not is_name_valid or not all(isinstance(i, int) and 0 <= i < layout.width for i in positions):
            raise ValueError(f"its layout is {dict(saved)!r}")
        return layout


def check_unique(names: Sequence[str], positions: Sequence[int]) -> None:
    """Raise ValueError if two of the columns have the same name."""
    counts = Counter(names[position] for position in positions)
    for position in positions:
        name = names[position]
        if counts[name] > 1:
            twice = [i for i in positions if names[i] == name]
            title = f"the name {name!r}" if name else "no name"
            raise ValueError(
                f"names of columns must differ; got {title} for columns {listed(twice, max_names=4)} (counted from 0): "
                "rename them, or leave all but one out (--drop INDEX)"
            )
