"""The binding of cuBLASLt: constants against its header, descriptors against the library. No device is needed."""

from __future__ import annotations

import re
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastopt.kernels.cuda.dense import blaslt
from fastopt.kernels.cuda.dense.blaslt import (
    Attribute,
    BlasLtError,
    Compute,
    DataType,
    Epilogue,
    Layout,
    Matmul,
    Operation,
    Order,
    Preference,
    Reduction,
    Status,
)

# The C enum and the prefix of its names, for each of ours.
ENUMS = {
    Status: ("CUBLAS_STATUS_", "cublas_api.h"),
    DataType: ("CUDA_", "library_types.h"),
    Compute: ("CUBLAS_COMPUTE_", "cublas_api.h"),
    Operation: ("CUBLAS_OP_", "cublas_api.h"),
    Order: ("CUBLASLT_ORDER_", "cublasLt.h"),
    Epilogue: ("CUBLASLT_EPILOGUE_", "cublasLt.h"),
    Reduction: ("CUBLASLT_REDUCTION_SCHEME_", "cublasLt.h"),
    Matmul: ("CUBLASLT_MATMUL_DESC_", "cublasLt.h"),
    Layout: ("CUBLASLT_MATRIX_LAYOUT_", "cublasLt.h"),
    Preference: ("CUBLASLT_MATMUL_PREF_", "cublasLt.h"),
}
DESCRIPTORS = {
    Matmul: lambda: blaslt.matmul_descriptor(Compute.C_32F, DataType.R_32F),
    Layout: lambda: blaslt.layout_descriptor(DataType.R_16BF, 5, 7, 6),
    Preference: blaslt.preference_descriptor,
}
ATTRIBUTES = [attribute for kind in DESCRIPTORS for attribute in kind]


@pytest.fixture(scope="module")
def installed():
    try:
        return blaslt.library()
    except BlasLtError:
        pytest.skip("needs cuBLASLt: pip install nvidia-cublas")


def header_text(name):
    """A header from the library's wheel, a neighbouring one, or a toolkit."""
    path = blaslt._path()
    folders = [Path(path).parents[1] / "include", Path("/usr/local/cuda/include")] if path else []
    found = [folder / name for folder in folders if (folder / name).is_file()]
    if not found:
        pytest.skip(f"no {name} comes with cuBLASLt here")
    return found[0].read_text()


def constants(text):
    """Every name = value of the enums of a header, values worked out."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.S)
    known = {}
    for name, value in re.findall(r"\b(CU\w+)\s*=\s*([^,}]+)", text):
        words = re.sub(r"\bCU\w+", lambda word: str(known.get(word[0], word[0])), value.strip())
        if re.fullmatch(r"(?:0[xX][\da-fA-F]+|\d+|[\s|()])+", words):
            known[name] = eval(words)
    return known


def test_reading_a_header():
    text = (
        "typedef enum { CU_A = 1, /* CU_B = 7, */ CU_B = 0x10 | CU_A, CU_C = (CU_B | 2), // CU_C = 9\n CU_D = F(3) } x;"
    )
    assert constants(text) == {"CU_A": 1, "CU_B": 17, "CU_C": 19}


@pytest.mark.parametrize("ours", ENUMS, ids=lambda ours: ours.__name__)
def test_constants_are_those_of_the_header(ours, installed):
    prefix, header = ENUMS[ours]
    theirs = constants(header_text(header))
    for name, member in ours.__members__.items():
        number = member.number if isinstance(member, Attribute) else int(member)
        spelled = name.removeprefix("C_") if ours is Compute else name
        assert theirs[prefix + spelled] == number, name


def test_every_enum_is_compared():
    kinds = [
        value for value in vars(blaslt).values() if isinstance(value, type) and value.__module__ == blaslt.__name__
    ]
    assert {kind for kind in kinds if issubclass(kind, (IntEnum, Attribute)) and kind is not Attribute} == set(ENUMS)


@pytest.mark.parametrize(
    "function", re.findall(r"\b(cublasLt\w+)\(", Path(blaslt.__file__).read_text().split('"""')[3])
)
def test_declarations_are_those_of_the_header(function, installed):
    """The same number of arguments, each of the same size."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", header_text("cublasLt.h"), flags=re.S)
    theirs = re.search(rf"\b{function}\s*\(([^)]*)\)", text)[1].split(",")
    kind = blaslt.ffi.typeof(getattr(installed, function))
    sizes = {"size_t": 8, "uint64_t": 8, "int64_t": 8, "int": 4, "cudaDataType": 4, "void": 0}
    expected = []
    for argument in theirs:
        words = [word for word in argument.replace("*", " * ").split() if word != "const"]
        pointer = "*" in words or "[" in argument or words[0].endswith(("Handle_t", "Desc_t", "Layout_t", "Stream_t"))
        pointer = pointer or words[0] == "cublasLtMatmulPreference_t"
        expected.append(8 if pointer else sizes.get(words[0], 4))  # enums are ints
    assert [blaslt.ffi.sizeof(argument) for argument in kind.args] == [size for size in expected if size]


def test_structures_are_as_large_as_the_headers():
    assert blaslt.ffi.sizeof("cublasLtMatmulAlgo_t") == 64
    result = "cublasLtMatmulHeuristicResult_t"
    offsets = [blaslt.ffi.offsetof(result, field) for field in ("algo", "workspaceSize", "state", "wavesCount")]
    assert (blaslt.ffi.sizeof(result), offsets) == (96, [0, 64, 72, 76])


@pytest.mark.parametrize("attribute", ATTRIBUTES, ids=str)
def test_an_attribute_that_is_set_is_read_back(attribute, installed):
    descriptor = DESCRIPTORS[type(attribute)]()
    values = {
        Matmul.EPILOGUE: Epilogue.DGELU_BGRAD,
        Matmul.COMPUTE_TYPE: Compute.C_64F,
        Matmul.SCALE_TYPE: DataType.R_64F,
        Matmul.TRANSA: Operation.T,
        Matmul.TRANSB: Operation.T,
        Matmul.BIAS_DATA_TYPE: DataType.R_16BF,
        Matmul.BIAS_POINTER: 0x7FFF_1234_5678_9AB0,
        Layout.TYPE: DataType.R_64F,
        Layout.ORDER: Order.ROW,
        Preference.REDUCTION_SCHEME_MASK: Reduction.COMPUTE_TYPE,
        Preference.MAX_WORKSPACE_BYTES: 1 << 40,
    }
    value = values.get(attribute, 128)
    descriptor[attribute] = value
    assert descriptor[attribute] == value
    fresh = DESCRIPTORS[type(attribute)]()
    assert [other for other in type(attribute) if descriptor[other] != fresh[other]] == [attribute]


@pytest.mark.parametrize("attribute", ATTRIBUTES, ids=str)
def test_the_size_of_an_attribute_is_the_librarys(attribute, installed):
    descriptor, size = DESCRIPTORS[type(attribute)](), blaslt.ffi.new("size_t *")
    ask = getattr(installed, f"cublasLt{descriptor.kind}GetAttribute")
    assert ask(descriptor.pointer, attribute.number, blaslt.ffi.NULL, 0, size) == Status.SUCCESS
    assert size[0] == blaslt.ffi.sizeof(attribute.kind)


def test_what_a_new_descriptor_says(installed):
    operation = blaslt.matmul_descriptor(Compute.C_32F_FAST_TF32, DataType.R_32F)
    assert [operation[a] for a in (Matmul.COMPUTE_TYPE, Matmul.SCALE_TYPE)] == [Compute.C_32F_FAST_TF32, DataType.R_32F]
    assert [operation[a] for a in (Matmul.TRANSA, Matmul.TRANSB, Matmul.EPILOGUE)] == [0, 0, Epilogue.DEFAULT]
    layout = DESCRIPTORS[Layout]()
    assert [layout[a] for a in Layout] == [DataType.R_16BF, Order.COL, 5, 7, 6]


def test_errors_name_the_status(installed):
    operation = DESCRIPTORS[Matmul]()
    with pytest.raises(
        BlasLtError, match=r"setting LD of a MatmulDesc to 5: CUBLAS_STATUS_INVALID_VALUE \(7\): "
    ) as error:
        operation[Layout.LD] = 5  # 8 bytes for an attribute of 4
    assert error.value.status == Status.INVALID_VALUE
    with pytest.raises(OverflowError):
        operation[Matmul.EPILOGUE] = -1


@pytest.mark.parametrize("status", Status, ids=str)
def test_names_of_statuses(status, installed):
    if status is Status.SUCCESS:
        blaslt.check(status, "testing")
        return
    with pytest.raises(BlasLtError, match=f"testing: CUBLAS_STATUS_{status.name} "):
        blaslt.check(status, "testing")


def test_versions(installed):
    assert blaslt.lt_version() >= (12, 0, 0)
    assert blaslt.cudart_version() >= (12, 0)


def test_without_a_library(monkeypatch):
    monkeypatch.setattr(blaslt, "_path", lambda: None)
    monkeypatch.setattr(blaslt, "NAMES", ["libcublasLt.so.no"])
    with pytest.raises(BlasLtError, match=r"cuBLASLt is not installed \(pip install 'fastopt\[cuda\]'") as error:
        blaslt.library.__wrapped__()
    assert error.value.status is None


@pytest.mark.parametrize("status", [Status.NOT_SUPPORTED, Status.ARCH_MISMATCH, Status.INVALID_VALUE])
def test_a_product_that_cannot_be(monkeypatch, caplog, status):
    """One that is called invalid is logged: it is more likely a mistake of ours."""
    library = SimpleNamespace(
        cublasLtCreate=lambda place: 0,
        cublasLtDestroy=lambda handle: 0,
        cublasLtMatmulAlgoGetHeuristic=lambda *_: status,
    )
    monkeypatch.setattr(blaslt, "library", lambda: library)
    part = SimpleNamespace(pointer=None)
    assert blaslt.Handle().heuristic(blaslt.Problem(part, part, part, part), part, 1) == []
    assert ("cuBLASLt calls a product invalid" in caplog.text) == (status == Status.INVALID_VALUE)
