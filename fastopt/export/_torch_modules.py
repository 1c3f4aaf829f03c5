"""Modules that torch lacks: affine maps in float64, and Gaussian noise."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Affine(nn.Module):
    """x factor + term, or (x - term) / factor, in float64, for rows (n, columns); nothing in it is trained.

    factor, term: float64 (columns,), kept as buffers. dtype: of the result.
    """

    factor: Tensor
    term: Tensor

    def __init__(self, divides: bool, factor: Tensor, term: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.divides, self.dtype = divides, dtype
        self.register_buffer("factor", factor)
        self.register_buffer("term", term)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map of rows."""
        x = x.double()
        y = (x - self.term) / self.factor if self.divides else x * self.factor + self.term
        return y.to(self.dtype)

    def extra_repr(self) -> str:
        """Return the formula for `print`."""
        return "(x - term) / factor" if self.divides else "x * factor + term"


class GaussianNoise(nn.Module):
    """x + stddev z with z of N(0, 1) in training; x otherwise."""

    def __init__(self, stddev: float) -> None:
        super().__init__()
        self.stddev = stddev

    def forward(self, x: Tensor) -> Tensor:
        """Return rows with noise, or as they are."""
        return x + self.stddev * torch.randn_like(x) if self.training else x

    def extra_repr(self) -> str:
        """Return the arguments for `print`."""
        return f"stddev={self.stddev}"
