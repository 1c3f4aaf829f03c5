"""StudyResult: the findings of a study as sentences, JSON and a page."""

from __future__ import annotations

from typing import Any

from .. import _files
from ._findings import Findings
from ._json import findings_as_json
from ._page import page
from ._words import sentences


class StudyResult(Findings):
    """Result of `study`: laws, tables and answers.

    grid      sizes, shares, epochs, batch sizes and seeds
    shape     widths of the data
    rows      number of training rows, of which the shares are
    test_rows  number of test rows
    is_classification  errors are shares of wrong classes, else mean squared errors
    runs      records of all models, after each number of epochs
    timings   all measured times
    machine   name of the machine whose times count
    header    data and settings
    """

    def answers(self) -> list[str]:
        """The findings in sentences: time, error, under- and overfitting, and the gain of more data."""
        return sentences(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything in values of JSON."""
        return {**findings_as_json(self), "answers": self.answers()}

    def html(self, path: Any) -> None:
        """Write a page with the answers, the table and the plots (extra `plot`), all in one file.

        path: of the file, or a binary file object.
        """
        _files.write(path, page(self).encode())

    def __str__(self) -> str:
        return "\n".join([self.table(), "", *self.answers()])

    def __repr__(self) -> str:
        return f"StudyResult({len(self.grid.layers)} sizes, {len(self.grid.shares)} shares, {self.models} models)"
