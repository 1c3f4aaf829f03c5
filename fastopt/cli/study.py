"""`fastopt study`: train models of many sizes on shares of the data, and tell what size, data and time bring."""

from __future__ import annotations

import argparse
import json
import sys
from importlib.util import find_spec
from typing import Any

from .. import _backends, _files
from .._files import check_writable
from .._validation import check_number
from ..conventions import NAMES as CONVENTIONS
from ..kernels.formulas import ACTIVATIONS, LOSSES
from ..losses import ALIASES, canonical
from ..optim import OPTIMIZER_CLASSES
from . import train_data
from .arguments import integer
from .report import MISSING
from .search_space import layers

PRINTED = "-"  # --json without FILE
# Settings of all models that are numbers, with their help.
NUMBERS = {
    "lr": "learning rate (default: the optimizer's)",
    "weight_decay": "(default: the optimizer's)",
    "momentum": "of sgd, momentum and rmsprop",
    "l1": "L1 penalty",
    "clip_value": "bring every gradient into [-X, X]",
    "clip_norm": "largest norm of all gradients together",
    "dropout": "rate after every hidden layer",
}
BUDGETS = {"seconds": "of training", "bytes": "of the weights", "parameters": "number of weights and biases"}


def add(commands: Any) -> None:
    """Add the parser of the command."""
    parser = commands.add_parser(
        "study",
        help="train models of many sizes, and tell what size, data and time bring",
        description="Train models of many sizes on shares of the training rows, time them, and print how time grows "
        "with size, how the test error falls with size and rows, which models over- or underfit, and the best for a "
        "budget.",
    )
    train_data.add_arguments(parser.add_argument_group("data"))

    grid = parser.add_argument_group("grid", "every combination is trained")
    grid.add_argument(
        "--layers", type=layers, metavar="WIDTHS", help="hidden layers of each size, such as 32,64/128/none"
    )
    grid.add_argument("--shares", type=_list(float), metavar="X,X", help="of the training rows (default: 0.25,0.5,1)")
    grid.add_argument("--epochs", type=_list(int), metavar="N,N", help="epochs to take errors after (default: 5,10,20)")
    grid.add_argument("--batch-size", type=_list(int), metavar="N,N", help="(default: 64, or that of DATA's train)")
    grid.add_argument("--seeds", type=integer(1), default=3, metavar="N", help="models of each (default: 3)")

    training = parser.add_argument_group("training")
    training.add_argument("--activation", choices=ACTIVATIONS, metavar="NAME", help=", ".join(ACTIVATIONS))
    training.add_argument(
        "--loss", type=canonical, choices=LOSSES, metavar="NAME", help=f"{', '.join(LOSSES)}; also {', '.join(ALIASES)}"
    )
    training.add_argument("--optimizer", choices=OPTIMIZER_CLASSES, metavar="NAME", help=", ".join(OPTIMIZER_CLASSES))
    training.add_argument(
        "--convention", choices=CONVENTIONS, help="whose formulas and defaults the optimizer has (default: torch)"
    )
    for name, text in NUMBERS.items():
        training.add_argument(f"--{name.replace('_', '-')}", type=float, metavar="X", help=text)
    training.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="(default: float32)")
    training.add_argument("--seed", type=integer(0), default=0, help="of the shares (default: 0)")
    training.add_argument("--backend", choices=_backends.MODULES, default=_backends.DEFAULT, help="(default: cpu)")
    training.add_argument("--threads", type=integer(1), metavar="N", help="of the compiled kernels")

    running = parser.add_argument_group("study")
    running.add_argument("--repeats", type=integer(1), default=3, metavar="N", help="of each time (default: 3)")
    running.add_argument("--storage", metavar="FILE", help="file of the results, to which they are appended")
    running.add_argument("--resume", action="store_true", help="go on with the study of --storage, if it is there")

    answers = parser.add_argument_group("answers")
    for name, text in BUDGETS.items():
        answers.add_argument(f"--best-{name}", type=float, metavar="X", help=f"the best model within X {name} {text}")
    answers.add_argument(
        "--predict", type=layers, metavar="WIDTHS", help="time and error of models of these sizes, such as 512,256"
    )
    answers.add_argument("--html", metavar="FILE", help="write a page with the answers, the plots and a table")
    answers.add_argument(
        "--json", metavar="FILE", nargs="?", const=PRINTED, help="write all of it as JSON; without FILE, print that"
    )
    answers.add_argument("--quiet", action="store_true", help="show no progress bar, and print the answers alone")
    parser.set_defaults(run=run)


def _list(kind: Any) -> Any:
    """Return the type of numbers with commas.

    >>> _list(float)("0.5,1"), _list(int)("8")
    ([0.5, 1.0], [8])
    """

    def parse(text: str) -> list[Any]:
        try:
            return [kind(part) for part in text.split(",")]
        except ValueError:
            whole = "whole numbers" if kind is int else "numbers"
            raise argparse.ArgumentTypeError(f"must be {whole} with commas; got {text!r}") from None

    return parse


def run(args: argparse.Namespace) -> int:
    """Study as `args` say, and print the table and the answers."""
    from ..study import _study
    from ..study._grid import EPOCHS, LAYERS, SHARES, Grid
    from ..study._training import Data

    if args.validation_split:
        raise ValueError("--validation-split is for train: study tests on the test rows")
    for option, path in (("--html", args.html), ("--json", args.json)):
        if path not in (None, PRINTED):
            check_writable(option, path)
    for name, value in _budget(args).items():
        check_number(f"--best-{name}", value, 0.0)
    grid = Grid.of(
        _sizes(args.layers) or LAYERS, args.shares or SHARES, args.epochs or EPOCHS, args.batch_size or 64, args.seeds
    )
    names = ("activation", "optimizer", "convention", *NUMBERS)
    settings = {name: value for name in names if (value := getattr(args, name)) is not None}
    options = _study.Options(settings, args.repeats, args.storage, args.resume, 0 if args.quiet else "auto")
    options.check()
    train_data.use_threads(args)
    data = train_data.load(args)
    task = train_data.task(args, data)
    features, target = task.x.dtype, train_data.targets(data, task.loss)
    result = _study.run(Data(task, data.x_test.astype(features, copy=False), target.y_test), grid, options)
    if args.html is not None:
        if find_spec("matplotlib") is None:
            print(f"fastopt: the page has tables only: {MISSING}", file=sys.stderr)
        result.html(args.html)
    if args.json is not None:
        found = {**result.to_dict(), "asked": _asked_as_json(args, result)}
        text = json.dumps(found, indent=1, allow_nan=False) + "\n"
        if args.json == PRINTED:
            print(text, end="")
            return 0
        _files.write(args.json, text.encode())
    if not args.quiet:
        print(f"{data.name}: {task.rows:,} rows to train on, {len(data.y_test):,} to test on", "", sep="\n")
        print(result.table(), "", sep="\n")
    print(*result.answers(), *_asked(args, result), sep="\n")
    return 0


def _sizes(found: Any) -> list[tuple[int, ...]]:
    """Sizes of an option, of which one stands alone."""
    return found if isinstance(found, list) else [] if found is None else [found]


def _budget(args: argparse.Namespace) -> dict[str, float]:
    """The budgets that the command line gives."""
    budgets = {name: getattr(args, f"best_{name}") for name in BUDGETS}
    return {name: value for name, value in budgets.items() if value is not None}


def _asked(args: argparse.Namespace, result: Any) -> list[str]:
    """The answers to budgets, and the predictions, that the command line asks for."""
    from ..study._words import choice_words, prediction_words

    given, sentences = _budget(args), []
    if given:
        words = " and ".join(f"{value:,g} {name}" for name, value in given.items())
        sentences.append(choice_words(result, result.best(**given), words))
    sentences += [prediction_words(result, widths) for widths in _sizes(args.predict)]
    return sentences


def _asked_as_json(args: argparse.Namespace, result: Any) -> dict[str, Any]:
    """The same answers in values of JSON."""
    best = result.best(**_budget(args)) if _budget(args) else None
    return {
        "best": None if best is None else {**best._asdict(), "seconds": best.seconds._asdict()},
        "predictions": [
            {
                "layers": widths,
                "parameters": result.shape.parameters(widths),
                "seconds": result.seconds(widths)._asdict(),
                "error": None if result.law is None else result.error(widths)._asdict(),
            }
            for widths in _sizes(args.predict)
        ],
    }
