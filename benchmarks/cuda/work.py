"""Layers by the kind of their arithmetic, and the accuracy of each kind."""

from __future__ import annotations

from fastopt.kernels.cuda.dense.products import Layer

# Relative to the largest sum of the terms' sizes: the error of a sum of k terms is up to k roundings of the arithmetic,
# in practice sqrt(k); TF32 rounds operands to 11 bits, and the others round their results.
NEAR = {"float64": 1e-14, "float32": 1e-5, "tf32": 2e-3, "float16": 2e-3, "bfloat16": 1.6e-2}


def layer_of(sizes: tuple[int, int, int], kind: str) -> Layer:
    """A dense layer on a batch: rows, inputs, outputs; `kind` is a dtype, or "tf32"."""
    return Layer(*sizes, "float32" if kind == "tf32" else kind, kind == "tf32")
