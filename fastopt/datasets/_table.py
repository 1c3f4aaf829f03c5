"""Table: a pandas frame with the user's names of its columns and rows, for error messages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

INSTALL = "reading tables needs pandas: pip install 'fastopt[data]'"


def import_pandas() -> Any:
    """Return the module pandas; ImportError, with the command that installs it, if it is missing."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError(INSTALL) from error
    return pandas


@dataclass
class Table:
    """Columns by position, as a file or a frame holds them.

    source   the file's path, or the class of a frame: messages begin with it
    frame    columns 0 ... width-1, rows 0 ... n-1; integers, floats, bools, text or categories, missing cells as NA
    names    names of the columns, "" for one without; None for a table without a header
    row_title  function of a row that returns its position in words, such as "line 5"
    notes    remarks for the user
    row_names  True if the header has no name for the first column: R's names of rows
    decimal  decimal mark of a text file; None for columns that have had types
    """

    source: str
    frame: pd.DataFrame
    names: list[str] | None
    row_title: Callable[[int], str]
    notes: list[str] = field(default_factory=list)
    row_names: bool = False
    decimal: str | None = None

    @property
    def width(self) -> int:
        """Number of columns."""
        return int(self.frame.shape[1])

    def title(self, position: int) -> str:
        """Return a column in the words of a message: its name, or its index if it has none."""
        return column_title(position, self.names)

    def key(self, position: int) -> str:
        """Return the name by which a user selects a column, or its index if it has none."""
        return self.names[position] if self.names is not None and self.names[position] else str(position)

    def at(self, row: int, position: int) -> str:
        """Return source, row and column of a cell in words, as the beginning of a message.

        row  index in `frame`
        """
        return f"{self.source}: {self.row_title(row)}, {self.title(position)}"

    def find(self, argument: str, column: str | int) -> int:
        """Return the position of a column given by its name or else its index; `argument` is the name of the argument.

        Raises ValueError, with the known names, if no column has the name, or two have.
        """
        if self.names is not None and (isinstance(column, str) or str(column) in self.names):
            found = [i for i, name in enumerate(self.names) if name == str(column)]
            if len(found) > 1:
                indices = " and ".join(map(str, found))
                raise ValueError(f"{self.source}: {argument} {column!r} names the columns {indices}: give an index")
            if found:
                return found[0]
        return self._by_index(argument, column)

    def _by_index(self, argument: str, column: str | int) -> int:
        if isinstance(column, bool) or not isinstance(column, str | int | np.integer):
            raise TypeError(f"{argument} must be a column's name or index; got {column!r}")
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
                f"{self.source}: {argument} must be an index from {-self.width} to {self.width - 1}; got {index}"
            )
        return index % self.width


def column_title(position: int, names: Sequence[str] | None) -> str:
    """Return a column in the words of a message.

    >>> column_title(1, ["age", "income"]), column_title(1, None)
    ("column 'income'", 'column 1 (counted from 0)')
    """
    if names is not None and names[position]:
        return f"column {names[position]!r}"
    return f"column {position} (counted from 0)"


def listed(names: Sequence[Any], max_names: int = 12) -> str:
    """Return names as a list in words, cut after `max_names` names.

    >>> listed(["a", "b", "c"], max_names=2)
    'a, b, ... (3 in all)'
    """
    text = ", ".join(str(name) for name in names[:max_names])
    return text + (f", ... ({len(names)} in all)" if len(names) > max_names else "")


def shown(value: Any) -> str:
    """Return a cell's content for a message, cut after 40 characters.

    >>> shown("x1"), shown(2.5), shown("a" * 50)
    ("'x1'", '2.5', "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa...'")
    """
    if isinstance(value, str):
        return repr(str(value) if len(value) <= 40 else f"{value[:40]}...")
    return f"{value}"
