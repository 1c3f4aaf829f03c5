"""Options of `fastopt train` for smaller models: pruning, weights as integers, and states of 8 bits."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import numpy as np

from .arguments import share

if TYPE_CHECKING:
    from ..compress import Pruning
    from ..models.sequential import Sequential

WAYS = {  # of `compile(quantize=...)`: how `fastopt.compress.quantize` makes codes of the trained weights
    "int8": {"bits": 8},
    "int8_weights": {"bits": 8, "weights_only": True},
    "int4": {"bits": 4},
}
SCOPES = ("layer", "network")
CALIBRATION = 2000  # training rows that the ranges of inputs are found from, drawn at random


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the group of options."""
    group = parser.add_argument_group("compression")
    group.add_argument(
        "--pruning",
        "--prune",
        type=share,
        metavar="SHARE",
        help="prune this share of the weights, the smallest, such as 0.9: gradually, in the first three quarters of the"
        " steps",
    )
    group.add_argument(
        "--pruning-scope", choices=SCOPES, help="the share is that of each layer (the default), or of the whole network"
    )
    group.add_argument(
        "--quantize",
        choices=WAYS,
        help="train with rounded weights, then make them integers: the model that is tested and saved has int8 products"
        " (int8), or weights alone as codes (int8_weights, int4)",
    )
    group.add_argument(
        "--state-bits", type=int, choices=(8, 32), help="bits of the optimizer's states (default: 32, those of --dtype)"
    )


def pruning_of(args: argparse.Namespace) -> Pruning | None:
    """Return the schedule of pruning, or None; ValueError for options that do not go together."""
    if args.pruning is None:
        if args.pruning_scope is not None:
            raise ValueError("--pruning-scope needs --pruning")
        return None
    if args.state_bits == 8:
        raise ValueError(
            "--pruning keeps states of pruned weights at zero, which codes of 8 bits cannot: --state-bits 32"
        )
    from ..compress import Pruning

    return Pruning(args.pruning, scope=args.pruning_scope or "layer")


def quantized(model: Sequential, way: str, x: np.ndarray, seed: int) -> Any:
    """Return the quantized model of a trained one; x (rows, features): training rows."""
    from ..compress import quantize

    rows = np.random.default_rng(seed).permutation(len(x))[:CALIBRATION]
    return quantize(model, x[np.sort(rows)], **WAYS[way])  # type: ignore[arg-type]


def notes(trained: Sequential, product: Sequential, pruning: Pruning | None) -> list[str]:
    """Return sentences for the end of the report on the product, the model that is tested and saved."""
    found = []
    if pruning is not None:
        from ..compress import sparsity

        found.append(f"Of the weights {sparsity(trained)['total']:.1%} are zero.")
    if product is not trained:
        small, whole = (sum(p.nbytes for p in model.parameters) for model in (product, trained))
        found.append(f"Test results are those of the quantized model, of {small:,} bytes instead of {whole:,}.")
    return found
