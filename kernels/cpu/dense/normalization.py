"""Normalization of the columns or the rows of a batch, forward and backward, with the gradients of gamma and beta.

    batch_norm                 a piece is some columns with all rows: mean, variance, the moving averages, y
    batch_norm_moving          y by the moving averages, a piece some columns of some rows
    batch_norm_backward        dx in the place of dy, and gamma and beta of a piece's columns
    batch_norm_fixed_backward  the same dx where training goes by the moving averages
    layer_norm                 a piece is some rows: mean, variance, y
    layer_norm_backward        dx in the place of dy, and for each piece the sums of its columns for gamma and beta
    layer_norm_gradients       gamma and beta, from those sums, a piece some columns

Sums are in float64, over pieces that depend on the shape alone, in a fixed order. A column's sum is made row by row; a
row's in LANES sums, each of every LANES-th column, since vectors could not make one sum with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import sqrt
from typing import Any

import numpy as np

from ..runtime.compile import Kernel
from ..runtime.frontend import register_jitable
from ..runtime.partition import batch_rows, num_pieces, pieces_of_rank
from ..runtime.primitives import call_update, view
from ..runtime.records import NORMALIZATION, read
from ..runtime.storage import ARITHMETIC
from .layer import SLOPE_COLS, TILE_ROWS, alpha_beta
from .row_weights import step_weight

# Columns of a piece: those of the phase `slopes`, which may therefore follow on the same rank without a barrier.
COLS = SLOPE_COLS
ROWS = 16  # of a piece of `layer_norm`: batches of 64 make four
LANES = 64  # sums of a row, in a loop long enough for vectors: 16, unrolled, took twice as long
SCRATCH_BYTES = 7 * COLS * 8  # of a rank: two sums of some columns, a gradient, and four numbers of each column


def _normalize_columns(arithmetic):
    T, itemsize, round_ = arithmetic.T, arithmetic.itemsize, arithmetic.round

    def normalize_columns(d, c, n, first, end, means, inverse, factors):
        """y = gamma (x - mean) inverse + beta for n columns from c on, of rows `first` to `end`.

        means: of x's type; inverse: float64; factors: memory for gamma inverse.
        """
        M, V, F = view(means, n, T), view(inverse, n, np.float64), view(factors, n, T)
        G, B = view(d.gamma + c * itemsize, n if d.gamma else 0, T), view(d.beta + c * itemsize, n if d.beta else 0, T)
        for j in range(n):
            F[j] = T(V[j] * G[j]) if d.gamma else T(V[j])
        for i in range(first, end):
            # one row of the piece
            skip = (i * d.columns + c) * itemsize
            X, Y = view(d.x + skip, n, T), view(d.y + skip, n, T)
            if d.beta:
                for j in range(n):
                    Y[j] = round_((X[j] - M[j]) * F[j] + B[j])
            else:
                for j in range(n):
                    Y[j] = round_((X[j] - M[j]) * F[j])

    return register_jitable(normalize_columns)


# ---------------------------------------------------------------- columns
def _batch_norm(arithmetic):
    """y of a training batch; the statistics of its columns are kept for the backward pass, and move the averages."""
    T, itemsize = arithmetic.T, arithmetic.itemsize
    normalize_columns = _normalize_columns(arithmetic)

    def batch_norm(work, step, rank, num_ranks):
        d = read(work, NORMALIZATION)
        rows, moves = batch_rows(d.run, step), d.weights == 0 or step_weight(d.weights, step) != 0
        scratch = d.scratch + rank * d.scratch_bytes
        for piece in pieces_of_rank(num_pieces(d.columns, COLS), rank, num_ranks):
            # one piece: some columns, all rows
            c = piece * COLS
            n = min(COLS, d.columns - c)
            mean, inverse = view(d.means + c * 8, n, np.float64), view(d.inverses + c * 8, n, np.float64)
            # the mean of each column
            for j in range(n):
                mean[j] = 0
            for i in range(rows):
                X = view(d.x + (i * d.columns + c) * itemsize, n, T)
                for j in range(n):
                    mean[j] += X[j]
            for j in range(n):
                mean[j] /= rows
            # its biased variance
            for j in range(n):
                inverse[j] = 0
            for i in range(rows):
                X = view(d.x + (i * d.columns + c) * itemsize, n, T)
                for j in range(n):
                    deviation = np.float64(X[j]) - mean[j]
                    inverse[j] += deviation * deviation
            # the moving averages
            moving_mean = view(d.moving_mean + c * itemsize, n, T)
            moving_variance = view(d.moving_variance + c * itemsize, n, T)
            for j in range(n):
                variance = inverse[j] / rows
                if moves:
                    moving_mean[j] = T(d.momentum * moving_mean[j] + (1.0 - d.momentum) * mean[j])
                    moving_variance[j] = T(d.momentum * moving_variance[j] + (1.0 - d.momentum) * variance)
                inverse[j] = 1.0 / sqrt(variance + d.epsilon)
            # y
            means = view(scratch, n, T)
            for j in range(n):
                means[j] = T(mean[j])
            normalize_columns(d, c, n, 0, rows, scratch, d.inverses + c * 8, scratch + COLS * 8)

    return batch_norm


def _batch_norm_moving(arithmetic):
    """y by the moving averages: in evaluation and prediction."""
    T, itemsize = arithmetic.T, arithmetic.itemsize
    normalize_columns = _normalize_columns(arithmetic)

    def batch_norm_moving(work, step, rank, num_ranks):
        d = read(work, NORMALIZATION)
        rows = batch_rows(d.run, step)
        scratch = d.scratch + rank * d.scratch_bytes
        tiles_down = num_pieces(rows, TILE_ROWS)
        for piece in pieces_of_rank(num_pieces(d.columns, COLS) * tiles_down, rank, num_ranks):
            # one piece: some columns of some rows
            c, first = piece // tiles_down * COLS, piece % tiles_down * TILE_ROWS
            n = min(COLS, d.columns - c)
            moving_variance = view(d.moving_variance + c * itemsize, n, T)
            inverse = view(scratch, n, np.float64)
            for j in range(n):
                inverse[j] = 1.0 / sqrt(np.float64(moving_variance[j]) + d.epsilon)
            # y
            means, end = d.moving_mean + c * itemsize, min(rows, first + TILE_ROWS)
            normalize_columns(d, c, n, first, end, means, scratch, scratch + COLS * 8)

    return batch_norm_moving


def _batch_norm_fixed_backward(arithmetic):
    """dx = gamma inverse dy in the place of dy, where training goes by the moving averages."""
    T, itemsize, round_ = arithmetic.T, arithmetic.itemsize, arithmetic.round

    def batch_norm_fixed_backward(work, step, rank, num_ranks):
        d = read(work, NORMALIZATION)
        rows = batch_rows(d.run, step)
        factors = d.scratch + rank * d.scratch_bytes
        for piece in pieces_of_rank(num_pieces(d.columns, COLS), rank, num_ranks):
            # one piece: some columns, all rows
            c = piece * COLS
            n = min(COLS, d.columns - c)
            F, variance = view(factors, n, T), view(d.moving_variance + c * itemsize, n, T)
            gamma = view(d.gamma + c * itemsize, n if d.gamma else 0, T)
            for j in range(n):
                inverse = 1.0 / sqrt(np.float64(variance[j]) + d.epsilon)
                F[j] = T(inverse * gamma[j]) if d.gamma else T(inverse)
            for i in range(rows):
                D = view(d.dy + (i * d.columns + c) * itemsize, n, T)
                for j in range(n):
                    D[j] = round_(D[j] * F[j])

    return batch_norm_fixed_backward


def _batch_norm_backward(arithmetic):
    """dx = gamma inverse (dy - mean(dy) - n mean(dy n)) in the place of dy, n = (x - mean) inverse, and the gradients.

    Their sums are those of the means: gamma's is dy n, beta's dy.
    """
    T, itemsize, round_ = arithmetic.T, arithmetic.itemsize, arithmetic.round
    gradients = _gradients(T, itemsize)

    def batch_norm_backward(work, step, rank, num_ranks):
        d = read(work, NORMALIZATION)
        rows = batch_rows(d.run, step)
        scratch = d.scratch + rank * d.scratch_bytes
        for piece in pieces_of_rank(num_pieces(d.columns, COLS), rank, num_ranks):
            # one piece: some columns, all rows
            c = piece * COLS
            n = min(COLS, d.columns - c)
            mean, inverse = view(d.means + c * 8, n, np.float64), view(d.inverses + c * 8, n, np.float64)
            # sums of dy n and of dy
            of_gamma, of_beta = view(scratch, n, np.float64), view(scratch + COLS * 8, n, np.float64)
            for j in range(n):
                of_gamma[j] = 0
                of_beta[j] = 0
            for i in range(rows):
                skip = (i * d.columns + c) * itemsize
                D, X = view(d.dy + skip, n, T), view(d.x + skip, n, T)
                for j in range(n):
                    of_gamma[j] += np.float64(D[j]) * ((np.float64(X[j]) - mean[j]) * inverse[j])
                    of_beta[j] += D[j]
            # dx = factor (dy - of_mean - (x - mean) of_deviation)
            if d.needs_dx:
                gamma = view(d.gamma + c * itemsize, n if d.gamma else 0, T)
                means, factors = view(scratch + 3 * COLS * 8, n, T), view(scratch + 4 * COLS * 8, n, T)
                of_mean, of_deviation = view(scratch + 5 * COLS * 8, n, T), view(scratch + 6 * COLS * 8, n, T)
                for j in range(n):
                    means[j] = T(mean[j])
                    factors[j] = T(inverse[j] * gamma[j]) if d.gamma else T(inverse[j])
                    of_mean[j] = T(of_beta[j] / rows)
                    of_deviation[j] = T(inverse[j] * (of_gamma[j] / rows))
                for i in range(rows):
                    skip = (i * d.columns + c) * itemsize
                    D, X = view(d.dy + skip, n, T), view(d.x + skip, n, T)
                    for j in range(n):
                        D[j] = round_(factors[j] * (D[j] - of_mean[j] - (X[j] - means[j]) * of_deviation[j]))
            gradients(d, step, scratch, c, n)

    return batch_norm_backward


# ---------------------------------------------------------------- rows
@register_jitable
def _clear(sums):
    """LANES zeros at an address."""
    S = view(sums, LANES, np.float64)
    for k in range(LANES):
        S[k] = 0


@register_jitable
def _total(sums):
    """The sum of LANES numbers at an address, by halves; they are overwritten."""
    S, half = view(sums, LANES, np.float64), LANES // 2
    while half > 0:
        for k in range(half):
            S[k] += S[k + half]
        half //= 2
    return S[0]


def _row_statistics(T, itemsize):
    @register_jitable
    def row_statistics(x, columns, epsilon, lanes):
        """The mean of a row, and 1 / sqrt(variance + epsilon)."""
        # the mean
        _clear(lanes)
        for j in range(0, columns, LANES):
            n = min(LANES, columns - j)
            X, S = view(x + j * itemsize, n, T), view(lanes, n, np.float64)
            for k in range(n):
                S[k] += X[k]
        mean = _total(lanes) / columns
        # the biased variance
        _clear(lanes)
        for j in range(0, columns, LANES):
            n = min(LANES, columns - j)
            X, S = view(x + j * itemsize, n, T), view(lanes, n, np.float64)
            for k in range(n):
                deviation = np.float64(X[k]) - mean
                S[k] += deviation * deviation
        return mean, 1.0 / sqrt(_total(lanes) / columns + epsilon)

    return row_statistics


def _gradient_sums(T, itemsize):
    @register_jitable
    def gradient_sums(dy, x, gamma, columns, mean, inverse, lanes):
        """The sums over a row of g = gamma dy, and of g n with n = (x - mean) inverse; gamma: address, or 0."""
        of_g, of_gn = lanes, lanes + LANES * 8
        _clear(of_g)
        _clear(of_gn)
        for j in range(0, columns, LANES):
            n, skip = min(LANES, columns - j), j * itemsize
            D, X, A = view(dy + skip, n, T), view(x + skip, n, T), view(gamma + skip, n if gamma else 0, T)
            G, P = view(of_g, n, np.float64), view(of_gn, n, np.float64)
            if gamma:
                for k in range(n):
                    g = np.float64(D[k] * A[k])
                    G[k] += g
                    P[k] += g * ((np.float64(X[k]) - mean) * inverse)
            else:
                for k in range(n):
                    g = np.float64(D[k])
                    G[k] += g
                    P[k] += g * ((np.float64(X[k]) - mean) * inverse)
        return _total(of_g), _total(of_gn)

    return gradient_sums


def _layer_norm(arithmetic):
    """y = gamma (x - mean) inverse + beta, row by row; the rows' statistics are kept for the backward pass."""
    T, itemsize, round_ = arithmetic.T, arithmetic.itemsize, arithmetic.round
    row_statistics = _row_statistics(T, itemsize)

    def layer_norm(work, step, rank, num_ranks):
        d = read(work, NORMALIZATION)
        rows, columns = batch_rows(d.run, step), d.columns
        scratch = d.scratch + rank * d.scratch_bytes
        gamma = view(d.gamma, columns if d.gamma else 0, T)
        beta = view(d.beta, columns if d.beta else 0, T)
        means, inverses = view(d.means, rows, np.float64), view(d.inverses, rows, np.float64)
        for piece in pieces_of_rank(num_pieces(rows, ROWS), rank, num_ranks):
            for i in range(piece * ROWS, min(rows, (piece + 1) * ROWS)):
                # one row of the piece
                skip = i * columns * itemsize
                means[i], inverses[i] = row_statistics(d.x + skip, columns, d.epsilon, scratch)
                X, Y = view(d.x + skip, columns, T), view(d.y + skip, columns, T)
                mean, inverse = T(means[i]), T(inverses[i])
                if d.gamma and d.beta:
                    for j in range(columns):
                        Y[j] = round_((X[j] - mean) * inverse * gamma[j] + beta[j])
                elif d.gamma:
                    for j in range(columns):
                        Y[j] = round_((X[j] - mean) * inverse * gamma[j])
                elif d.beta:
                    for j in range(columns):
                        Y[j] = round_((X[j] - mean) * inverse + beta[j])
                else:
                    for j in range(columns):
                        Y[j] = round_((X[j] - mean) * inverse)

    return layer_norm


def _layer_norm_backward(arithmetic):
    """dx = inverse (g - mean(g) - n mean(g n)) in the place of dy, with g = gamma dy and n = (x - mean) inverse.

    For each piece of rows, the sums of its columns of dy n and dy.
    """
    T, itemsize, round_ = arithmetic.T, arithmetic.itemsize, arithmetic.round
    gradient_sums = _gradient_sums(T, itemsize)

    def layer_norm_backward(work, step, rank, num_ranks):
        d = read(work, NORMALIZATION)
        rows, columns = batch_rows(d.run, step), d.columns
        scratch = d.scratch + rank * d.scratch_bytes
        gamma = view(d.gamma, columns if d.gamma else 0, T)
        means, inverses = view(d.means, rows, np.float64), view(d.inverses, rows, np.float64)
        for piece in pieces_of_rank(num_pieces(rows, ROWS), rank, num_ranks):
            of_gamma = view(d.sums + 2 * piece * columns * 8, columns, np.float64)
            of_beta = view(d.sums + (2 * piece + 1) * columns * 8, columns, np.float64)
            for j in range(columns):
                of_gamma[j] = 0
                of_beta[j] = 0
            for i in range(piece * ROWS, min(rows, (piece + 1) * ROWS)):
                # one row of the piece
                skip = i * columns * itemsize
                X, D = view(d.x + skip, columns, T), view(d.dy + skip, columns, T)
                mean, inverse = means[i], inverses[i]
                # the columns' sums
                for j in range(columns):
                    of_gamma[j] += np.float64(D[j]) * ((np.float64(X[j]) - mean) * inverse)
                    of_beta[j] += D[j]
                if not d.needs_dx:
                    continue
                # dx = inverse (g - of_mean - (x - mean) of_deviation)
                of_g, of_gn = gradient_sums(d.dy + skip, d.x + skip, d.gamma, columns, mean, inverse, scratch)
                of_mean, of_deviation = T(of_g / columns), T(inverse * (of_gn / columns))
                center, factor = T(mean), T(inverse)
                if d.gamma:
                    for j in range(columns):
                        D[j] = round_(factor * (D[j] * gamma[j] - of_mean - (X[j] - center) * of_deviation))
                else:
                    for j in range(columns):
                        D[j] = round_(factor * (D[j] - of_mean - (X[j] - center) * of_deviation))

    return layer_norm_backward


def _layer_norm_gradients(arithmetic):
    """The gradients of gamma and beta, from the sums of all pieces of rows."""
    gradients = _gradients(arithmetic.T, arithmetic.itemsize)

    def layer_norm_gradients(work, step, rank, num_ranks):
        d = read(work, NORMALIZATION)
        tiles = num_pieces(batch_rows(d.run, step), ROWS)
        scratch = d.scratch + rank * d.scratch_bytes
        for piece in pieces_of_rank(num_pieces(d.columns, COLS), rank, num_ranks):
            # one piece: some columns
            c = piece * COLS
            n = min(COLS, d.columns - c)
            for which in range(2):
                sums = view(scratch + which * COLS * 8, n, np.float64)
                for j in range(n):
                    sums[j] = 0
                for tile in range(tiles):
                    of_tile = view(d.sums + ((2 * tile + which) * d.columns + c) * 8, n, np.float64)
                    for j in range(n):
                        sums[j] += of_tile[j]
            gradients(d, step, scratch, c, n)

    return layer_norm_gradients


# ---------------------------------------------------------------- gamma and beta
def _gradients(T, itemsize):
    @register_jitable
    def gradient(d, step, sums, into, g, update, p, states, scalars, c, n):
        """The gradient of n elements of a parameter from c on, of their sums: written, or handed to the update."""
        S, G = view(sums, n, np.float64), view(into + c * itemsize if into else g, n, T)
        alpha, beta = alpha_beta(d, step)
        for j in range(n):
            G[j] = T(alpha * S[j]) if beta == 0 else G[j] + T(alpha * S[j])
        if update:
            call_update(update, p, g, states, scalars + step * d.scalars_row_bytes, c, 1, n, 0)

    def gradients(d, step, scratch, c, n):
        """Gamma and beta of n columns from c on: their sums lie at the beginning of scratch."""
        g = scratch + 2 * COLS * 8
        if d.dgamma or d.update_gamma:
            gradient(d, step, scratch, d.dgamma, g, d.update_gamma, d.gamma, d.gamma_states, d.gamma_scalars, c, n)
        if d.dbeta or d.update_beta:
            sums = scratch + COLS * 8
            gradient(d, step, sums, d.dbeta, g, d.update_beta, d.beta, d.beta_states, d.beta_scalars, c, n)

    return register_jitable(gradients)


NORMALIZATIONS: dict[str, Callable[..., Any]] = {
    "batch_norm": _batch_norm,
    "batch_norm_moving": _batch_norm_moving,
    "batch_norm_backward": _batch_norm_backward,
    "batch_norm_fixed_backward": _batch_norm_fixed_backward,
    "layer_norm": _layer_norm,
    "layer_norm_backward": _layer_norm_backward,
    "layer_norm_gradients": _layer_norm_gradients,
}


@cache
def normalization_kernel(phase: str, dtype: str) -> Kernel:
    """dtype: that which layers compute in, to which what they give to one another is rounded."""
    return Kernel(NORMALIZATIONS[phase](ARITHMETIC[dtype]), f"{phase}_{dtype}")
