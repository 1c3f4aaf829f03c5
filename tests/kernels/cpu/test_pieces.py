"""Gradients of pieces of a step, their sums in the order of a tree, and updates of parts of the parameters."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastopt.distributed import _tree
from fastopt.kernels import reference
from fastopt.kernels.cpu import Additions, Draws, FlatUpdates, Network, Pieces
from fastopt.kernels.cpu.training import pieces as pieces_module
from fastopt.kernels.cpu.training import tree_sums
from fastopt.kernels.spec import Batches, DenseSpec, LossSpec, OptimizerSteps

LAYERS = [DenseSpec(5, 7, "tanh"), DenseSpec(7, 3, "relu"), DenseSpec(3, 1)]
OPTIONS = {"weight_decay": 0.0, "maximize": False, "l1": 0.0, "clip_value": None}


def parameters(rng, dtype="float32"):
    shapes = [shape for layer in LAYERS for shape in ((layer.inputs, layer.outputs), (layer.outputs,))]
    return [rng.normal(size=shape).astype(dtype) for shape in shapes]


def sgd(params, rate=0.1, updated=None):
    on = [True] * len(params) if updated is None else updated
    return OptimizerSteps("sgd", [() if one else None for one in on], OPTIONS, np.array([rate]))


def case(rows, dtype="float32", weighted=False, seed=0):
    rng = np.random.default_rng(seed)
    params = parameters(rng, dtype)
    x, y = rng.normal(size=(rows, 5)).astype(dtype), rng.normal(size=(rows, 1)).astype(dtype)
    weights = rng.integers(0, 3, rows).astype(dtype) + dtype_one(dtype) if weighted else None
    order = rng.permutation(rows).astype(np.uint32)
    return params, Batches(x, y, order, rows, weights=weights)


def dtype_one(dtype):
    return np.dtype(dtype).type(1)


def gradient_of(params, data, pieces, first, count, optimizer):
    """Gradient and losses of some pieces of a step that is cut into `pieces`."""
    rows = len(data.order)
    network = Network(LAYERS, params, params[0].dtype, LossSpec("mean_squared_error"))
    most = -(-rows // pieces)
    program = Pieces(network, data._replace(batch_size=most), count, optimizer, 0, None)
    cuts = _tree.cut(rows, pieces)[first : first + count + 1]
    weight = rows if data.weights is None else float(data.weights.sum(dtype=np.float64))
    program.run(data.order[cuts[0] : cuts[-1]], cuts - cuts[0], Draws(0, int(cuts[0])), weight)
    return program.gradient.copy(), program.losses.copy(), program


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradient_of_all_pieces_is_that_of_the_step(dtype, weighted):
    """The difference of the parameters after a step of gradient descent with rate 1, by the reference."""
    params, data = case(37, dtype, weighted)
    gradient, losses, program = gradient_of(params, data, 4, 0, 4, sgd(params))
    after = [p.copy() for p in params]
    network = reference.Network(LAYERS, after, dtype, LossSpec("mean_squared_error"), [])
    result = network.train(data, sgd(after, 1.0), 0)
    wanted = np.concatenate([(p - q).ravel() for p, q in zip(params, after, strict=True)])
    rtol = 1e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(gradient, wanted, rtol=rtol, atol=rtol)
    weight = 37 if data.weights is None else data.weights.sum()
    assert losses.sum() / weight == pytest.approx(result.losses[0], rel=rtol)
    assert program.flat.starts == [0, 35, 42, 63, 66, 69]


@settings(deadline=None)
@given(rows=st.integers(1, 70), pieces=st.sampled_from([4, 8]), ranks=st.integers(1, 8), weighted=st.booleans())
def test_any_division_has_the_same_bits(rows, pieces, ranks, weighted):
    """Some pieces may have no rows."""
    ranks = min(ranks, pieces)
    params, data = case(rows, weighted=weighted)
    whole, losses, _ = gradient_of(params, data, pieces, 0, pieces, sgd(params))
    shares = [_tree.share_of(rank, ranks, pieces) for rank in range(ranks)]
    assert sum(count for _, count in shares) == pieces
    found = [gradient_of(params, data, pieces, first, count, sgd(params))[:2] for first, count in shares]
    arrays = [gradient for gradient, _ in found]
    Additions([(arrays[a], arrays[b]) for a, b in _tree.additions(ranks)]).run()
    np.testing.assert_array_equal(arrays[0].view(np.uint32), whole.view(np.uint32))
    np.testing.assert_array_equal(np.concatenate([own for _, own in found]), losses)


@pytest.mark.parametrize("in_tiles", [1, 22, 1000])
def test_the_sum_is_that_of_a_tree(in_tiles, monkeypatch):
    """Eight pieces of one row each are added up as a tree, in tiles too; a sum from left to right differs."""
    monkeypatch.setattr(tree_sums, "IN_TILES", in_tiles)
    params, data = case(8)
    single = [gradient_of(params, data, 8, piece, 1, sgd(params))[0] for piece in range(8)]
    pairs = [single[i] + single[i + 1] for i in range(0, 8, 2)]
    wanted = (pairs[0] + pairs[1]) + (pairs[2] + pairs[3])
    found = gradient_of(params, data, 8, 0, 8, sgd(params))[0]
    np.testing.assert_array_equal(found, wanted)
    assert (found != np.add.accumulate(single)[-1]).any()


def test_frozen_parameters_have_no_place():
    params, data = case(16)
    some = sgd(params, updated=[False, False, True, False, True, True])
    gradient, _, program = gradient_of(params, data, 4, 0, 4, some)
    assert program.flat.starts == [None, None, 0, None, 21, 24]
    whole, _, every = gradient_of(params, data, 4, 0, 4, sgd(params))
    views, wanted = program.flat.views(gradient), every.flat.views(whole)
    for own, other in zip(views, wanted, strict=True):
        if own is not None:
            np.testing.assert_array_equal(own, other)


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("clips", [False, True])
def test_updates_of_parts(ranks, clips):
    """Parts that are updated one by one become what one update of all makes of them, as the formulas have it."""
    params, data = case(16)
    gradient, _, program = gradient_of(params, data, 4, 0, 4, sgd(params))
    network = Network(LAYERS, params, "float32", LossSpec("mean_squared_error"))
    optimizer = sgd(params, 0.25)._replace(clip_norm=0.5 if clips else None)
    before, chunk = np.concatenate([p.ravel() for p in params]), _tree.chunk_of(gradient.size)
    cuts = _tree.cuts_of(gradient.size, ranks, chunk)
    parts = [
        FlatUpdates(network, optimizer, program.flat, gradient[first:end].copy(), first, chunk)
        for first, end in pairwise(cuts)
    ]
    squares = np.concatenate([part.squares() for part in parts])
    norm = float(np.sqrt(squares.sum()))
    for part in parts:
        part.update(0, norm)
    found = np.concatenate([p.ravel() for p in params])
    factor = np.float32(1.0)
    if clips:
        assert norm == pytest.approx(np.linalg.norm(gradient.astype(np.float64)), rel=1e-12)
        assert norm > 0.5
        factor = np.float32(0.5 / (norm + 1e-6))
    np.testing.assert_allclose(found, before - np.float32(0.25) * (factor * gradient), rtol=1e-6, atol=1e-7)
    assert (found != before).any()


def test_the_last_piece_in_segments(monkeypatch):
    """Each bucket is told when its part is complete, and the layers below are not."""
    monkeypatch.setattr(pieces_module, "BUCKET_BYTES", 4)
    params, data = case(37)
    wanted, losses, program = gradient_of(params, data, 4, 0, 4, sgd(params))
    assert program.buckets == [(66, 70), (42, 66), (0, 42)]
    seen = []
    cuts = _tree.cut(37, 4)
    program.gradient[:] = 0
    program.run(data.order, cuts, Draws(0, 0), 37, lambda bucket: seen.append(program.gradient.copy()))
    for (first, _), then in zip(program.buckets, seen, strict=True):
        np.testing.assert_array_equal(then[first:], wanted[first:])
    assert (seen[0][:42] != wanted[:42]).any()
    np.testing.assert_array_equal(program.gradient, wanted)
    np.testing.assert_array_equal(program.losses, losses)
    # and the next step is not disturbed
    program.run(data.order, cuts, Draws(0, 0), 37)
    np.testing.assert_array_equal(program.gradient, wanted)
