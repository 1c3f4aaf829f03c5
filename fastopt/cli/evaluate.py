"""`fastopt evaluate`: loss and metrics of a saved model on new data."""

from __future__ import annotations

import argparse
import math
import sys
from typing import Any

from . import new_data


def add(commands: Any) -> None:
    """Add the parser of the command."""
    parser = commands.add_parser(
        "evaluate",
        help="test a saved model on new data",
        description="Print the loss and the metrics of a model on new data, which are brought into the form of its "
        "training data: columns by their names, text one-hot encoded, numbers scaled.",
    )
    new_data.add_arguments(parser, "column that holds the targets (default: as in training)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate, and print loss and metrics."""
    from ..models.loading import load_model
    from .target_units import metrics_in_target_units

    model = load_model(args.model, backend=args.backend)
    if model.loss is None:
        raise ValueError(f"{args.model}: the model was saved without a loss: compile it before it is saved")
    data = new_data.read(model, args, with_targets=True)
    assert data.y is not None
    results = metrics_in_target_units(model, data.x, data.y, model.evaluate(data.x, data.y, args.batch_size))
    for note in data.notes:
        print(f"fastopt: {note}", file=sys.stderr)
    rows = [("rows", f"{len(data.x):,}"), (f"loss ({model.loss.spec.name})", f"{results.pop('loss'):.6g}")]
    for name, value in results.items():
        rows.append((name, f"{100 * value:.2f} %" if name == "accuracy" else f"{value:.6g}"))
        if name == "mean_squared_error":
            rows.append(("RMSE", f"{math.sqrt(value):.6g}"))
    width = max(len(title) for title, _ in rows)
    print("\n".join(f"{title:<{width}}   {text}" for title, text in rows))
    if model.target_scale is not None:
        print("The loss is that of standardized targets; the other results are in the targets' own units.")
    return 0
