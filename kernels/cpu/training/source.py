"""Fields of a gather's record that say where the data of a pass lie."""

from __future__ import annotations

import numpy as np

from ...sources import Source, SparseRows, stages_table, through
from ..runtime.primitives import address_of
from ..runtime.records import GATHER, word_of, words_of
from ..runtime.storage import ARITHMETIC

X, ROW_BYTES, ELEMENT_BYTES, STAGES = (word_of(GATHER, name) for name in ("x", "row_bytes", "element_bytes", "stages"))


class SourceWords:
    """The words of a record GATHER that change from pass to pass, with what is made of the data for them."""

    def __init__(self, record: np.ndarray, compute: str) -> None:
        self.record, self.words = record, words_of(record)
        self.dtype = np.dtype(ARITHMETIC[compute].T)  # of the batch

    def describe(self, source: Source) -> None:
        """Point to the features of a pass, which the caller keeps alive."""
        values, words, table = source.values, self.words, stages_table(source)
        words[STAGES], self._table = address_of(table), table
        if isinstance(values, SparseRows):
            fields = self.record[0]
            fields["x"], fields["sparse_columns"] = address_of(values.stored), address_of(values.columns)
            fields["starts"], self._absent = address_of(values.starts), self._prepared_zeros(source)
            fields["absent"] = address_of(self._absent)
        else:
            words[X] = address_of(values)
            words[ROW_BYTES], words[ELEMENT_BYTES] = values.strides

    def _prepared_zeros(self, source: Source) -> np.ndarray:
        """The numbers of a batch where nothing is stored, (inputs,)."""
        zeros = through(source.stages, np.zeros((1, source.shape[1])))
        return np.ascontiguousarray(zeros, self.dtype)[0]
