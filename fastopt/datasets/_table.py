"""Table: a pandas frame with the names that its columns have for the user, and the places of its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

INSTALL = "reading tables needs pandas: pip install 'fastopt[data]'"


def import_pandas() -> Any:
    """Return the module pandas; ImportError with the way to get it where it is not installed."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError(INSTALL) from error
    return pandas


@dataclass
class Table:
    """Columns by position, as a file or a frame holds them.

    source   the file's path, or the kind of frame: messages begin with it
    frame    columns 0 ... width-1, rows 0 ... n-1; integers, floats, bools, text or categories, missing cells as NA
    names    the columns' names, "" where one has none; None for a table without a header
    where    the place of a row in the words of a message, such as "line 5"
    notes    remarks for the user
    row_names  True where the first column came without a name in the header: R's names of rows
    decimal  the mark that numbers were written with; None where the columns had types before they were read
    """

    source: str
    frame: pd.DataFrame
    names: list[str] | None
    where: Callable[[int], str]
    notes: list[str] = field(default_factory=list)
    row_names: bool = False
    decimal: str | None = None

    @property
    def width(self) -> int:
        """Number of columns."""
        return int(self.frame.shape[1])

    def title(self, position: int) -> str:
        """Return a column as a message calls it: by its name, or by its index where it has none."""
        return column_title(position, self.names)

    def key(self, position: int) -> str:
        """Return what a user calls a column by: its name, or its index where it has none."""
        return self.names[position] if self.names is not None and self.names[position] else str(position)

    def at(self, row: int, position: int) -> str:
        """Return a cell's place as a message begins with it.

        The row is one of `frame`.
        """
        return f"{self.source}: {self.where(row)}, {self.title(position)}"

    def find(self, what: str, column: str | int) -> int:
        """Return the position of a column given by its name or by its index; a name goes first.

        Raises ValueError, with the names that there are, where there is no such column or where two have the name.
        """
        if self.names is not None and (isinstance(column, str) or str(column) in self.names):
            found = [i for i, name in enumerate(self.names) if name == str(column)]
            if len(found) > 1:
                indices = " and ".join(map(str, found))
                raise ValueError(f"{self.source}: {what} {column!r} names the columns {indices}: give an index")
            if found:
                return found[0]
        return self._by_index(what, column)

    def _by_index(self, what: str, column: str | int) -> int:
        if isinstance(column, bool) or not isinstance(column, str | int | np.integer):
            raise TypeError(f"{what} must be a column's name or index; got {column!r}")
        try:
            index = int(column)
        except ValueError:
            if self.names is None:
                known = "it has no header: give the column's index"
            else:
                known = f"its columns are {listed(self.names)}"
            raise ValueError(f"{self.source}: there is no column {column!r}; {known}") from None
        if not -self.width <= index < self.width:
            raise ValueError(
                f"{self.source}: {what} must be an index from {-self.width} to {self.width - 1}; got {index}"
            )
        return index % self.width


def column_title(position: int, names: Sequence[str] | None) -> str:
    """Return a column as a message calls it.

    >>> column_title(1, ["age", "income"]), column_title(1, None)
    ("column 'income'", 'column 1 (counted from 0)')
    """
    if names is not None and names[position]:
        return f"column {names[position]!r}"
    return f"column {position} (counted from 0)"


def listed(names: Sequence[Any], most: int = 12) -> str:
    """Return names in a row, the first ones where there are many.

    >>> listed(["a", "b", "c"], most=2)
    'a, b, ... (3 in all)'
    """
    text = ", ".join(str(name) for name in names[:most])
    return text + (f", ... ({len(names)} in all)" if len(names) > most else "")


def shown(value: Any) -> str:
    """Return a cell's content as a message shows it, cut where it is long.

    >>> shown("x1"), shown(2.5), shown("a" * 50)
    ("'x1'", '2.5', "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa...'")
    """
    if isinstance(value, str):
        return repr(str(value) if len(value) <= 40 else f"{value[:40]}...")
    return f"{value}"
