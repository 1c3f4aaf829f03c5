"""`fastopt summary`: the layers of a saved model."""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    """Add the parser of the command."""
    parser = commands.add_parser(
        "summary",
        help="show the layers of a saved model",
        description="Print the layers of a saved model with their numbers of parameters, the shares that are pruned, "
        "and the bytes of integers; and how it was trained.",
    )
    parser.add_argument("model", metavar="MODEL", help="a model file, as fastopt train --save and model.save write it")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the summary."""
    from ..models.loading import load_model

    model = load_model(args.model, backend="numpy")  # compiles nothing
    print(model.summary())
    rows = []
    if model.loss is not None:
        rows.append(("loss", model.loss.spec.name))
    if model.optimizer is not None:
        rows.append(("optimizer", type(model.optimizer).__name__))
    if model.epochs_done:
        rows.append(("epochs", str(model.epochs_done)))
    if model.classes is not None:
        rows.append(("classes", ", ".join(map(str, model.classes.tolist()))))
    for title, text in rows:
        print(f"{title:<9}  {text}")
    return 0
