"""16-bit arrays of ml_dtypes and of torch in the optimizers."""

import copy
import pickle

import numpy as np
import pytest

import fastopt as fo
from fastopt.kernels.reference.bits16 import widened

from .helpers_16bit import FORMS, KINDS, as_16bit, given, laid_out, numbers
from .optimizers import LAYOUTS, drawn


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", FORMS)
def test_arrays_of_ml_dtypes(form, layout, backend):
    ml_dtypes = pytest.importorskip("ml_dtypes")

    def as_bfloat16(bits):
        return LAYOUTS[layout](bits.view(ml_dtypes.bfloat16))

    p = as_bfloat16(numbers((2, 3, 4), "bfloat16", 1))
    twin = laid_out(layout, numbers((2, 3, 4), "bfloat16", 1))
    ours, theirs = (fo.Adam(x, lr=0.05, backend=backend, **FORMS[form]) for x in (p, given(twin)))
    for seed in (2, 3):
        ours.step(as_bfloat16(numbers((2, 3, 4), "bfloat16", seed)))
        theirs.step(given(numbers((2, 3, 4), "bfloat16", seed)))
    assert p.astype(np.float32).tolist() == widened(np.ascontiguousarray(twin)).tolist()
    assert p.dtype.type is ml_dtypes.bfloat16
    assert ours.param_groups[0]["params"][0] is p
    saved = ours.state_dict()
    saved["state"][0]["exp_avg"] = np.ones((2, 3, 4), ml_dtypes.bfloat16)
    ours.load_state_dict(saved)
    assert ours.states[0][0].tolist() == np.ones((2, 3, 4)).tolist()
    if layout != "byte-swapped":  # after which all arrays of the dtype are taken for such, whoever unpickled it
        pickle.loads(pickle.dumps(ours)).step(as_bfloat16(numbers((2, 3, 4), "bfloat16", 4)))
    with pytest.raises(TypeError, match="x must be float32 or float64; got bfloat16"):
        fo.dense_forward(np.ones((1, 2), ml_dtypes.bfloat16), np.ones((2, 2)))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_that_need_no_look(kind):
    """Contiguous NumPy arrays are read by compiled code alone."""
    dtype = np.float16 if kind == "float16" else pytest.importorskip("ml_dtypes").bfloat16
    optimizer = fo.SGD([np.ones(3, dtype), np.ones((), dtype)])
    grads = (np.ones(3, dtype), np.ones((), dtype))
    _, others = optimizer._engine.plan(optimizer._step_settings()).read(grads)
    assert others == []
    assert optimizer._engine.plan(optimizer._step_settings()).read((grads[0][::-1], np.ones((), "f4")))[1] == [0, 1]


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_torchs_tensors_are_updated_in_place(kind, form, layout, backend):
    torch = pytest.importorskip("torch", reason="in the extra `torch`")
    change = {
        "contiguous": lambda a: a.clone(),
        "transposed": lambda a: a.t().contiguous().t(),
        "strided": lambda a: torch.stack([a, a], -1)[..., 0],
    }[layout]
    dtype = getattr(torch, kind)
    start = drawn((3, 4), "float32")
    p = torch.nn.Parameter(change(torch.tensor(start).to(dtype)))
    q = laid_out("fortran" if layout == "transposed" else "contiguous", as_16bit(start, kind))
    pointer, version = p.data_ptr(), p._version
    ours, theirs = (fo.AdamW([x], lr=0.05, backend=backend, **FORMS[form]) for x in (p, given(q)))
    for seed in (1, 2, 3):
        g = drawn((3, 4), "float32", seed)
        ours.step([change(torch.tensor(g).to(dtype))])
        theirs.step([given(as_16bit(g, kind))])
    assert p.detach().float().tolist() == widened(np.ascontiguousarray(q)).tolist()
    assert (p.data_ptr(), p.dtype) == (pointer, dtype)
    assert p._version > version
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        other.step([torch.ones(3, 4, dtype=dtype)])


@pytest.mark.parametrize("kind", KINDS)
def test_state_dicts_go_to_torch_and_back(kind):
    torch = pytest.importorskip("torch", reason="in the extra `torch`")
    dtype = getattr(torch, kind)
    p, q = (torch.ones(4, dtype=dtype, requires_grad=True) for _ in range(2))
    peer, ours = torch.optim.Adam([p], lr=0.125), fo.Adam([q], lr=0.5)
    for _ in range(3):
        p.grad = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=dtype)
        peer.step()
    ours.load_state_dict(peer.state_dict())
    state = peer.state[p]
    for found, name in zip(ours.states[0], ("exp_avg", "exp_avg_sq"), strict=False):
        assert found.tolist() == state[name].float().tolist()
    assert ours.states[0][2].tolist() == [1.0] * 4
    saved = ours.state_dict()
    tensors = {n: torch.tensor(float(v)) if n == "step" else torch.from_numpy(v) for n, v in saved["state"][0].items()}
    peer.load_state_dict({"state": {0: tensors}, "param_groups": peer.state_dict()["param_groups"]})
    assert torch.equal(peer.state[p]["exp_avg"].float(), state["exp_avg"].float())
    peer.step()
