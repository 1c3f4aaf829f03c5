"""Records are read as attributes, by interpreted kernels of NumPy's records."""

import numpy as np
import pytest

from fastopt.kernels.cpu.runtime import records
from fastopt.kernels.cpu.runtime.primitives import address_of
from fastopt.kernels.cpu.runtime.records import fill, offset

RECORDS = {name: value for name, value in vars(records).items() if isinstance(value, np.dtype)}


@pytest.mark.parametrize("name", RECORDS)
def test_no_field_has_the_name_of_an_attribute_of_arrays(name):
    assert not [field for field in RECORDS[name].names if hasattr(np.ndarray, field)]


def test_a_field_holds_a_number_or_an_address():
    array = np.ones(3)
    record = fill(records.SQUARES, x=array, elements=3)
    assert record["x"][0] == address_of(array)
    assert (record["elements"][0], record["squares"][0]) == (3, 0)
    assert offset(records.SQUARES, "elements") == 16
