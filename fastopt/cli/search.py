"""`fastopt search`: find settings of a network for a data set or a file."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .. import _backends
from ..conventions import NAMES as CONVENTIONS
from ..kernels.formulas import ACTIVATIONS, LOSSES
from ..losses import ALIASES, canonical
from ..optim import OPTIMIZER_CLASSES
from . import train_data
from .arguments import integer
from .search_space import FORMS, layers, names, numbers

if TYPE_CHECKING:
    pass

# Searched where the command line names no range and no list.
DEFAULT_SPACE = {"lr": (1e-4, 1e-1), "batch_size": [16, 32, 64], "layers": [(32,), (64, 32), (128, 64)]}
# Settings that are numbers: a logarithmic scale, whole numbers, the help.
NUMBERS = {
    "lr": (True, False, "learning rate"),
    "batch_size": (True, True, "rows of a batch"),
    "epochs": (False, True, "of each training (default: 20)"),
    "dropout": (False, False, "rate after every hidden layer"),
    "weight_decay": (True, False, "(default: the optimizer's)"),
    "momentum": (False, False, "of sgd, momentum and rmsprop"),
    "l1": (True, False, "L1 penalty"),
    "clip_value": (True, False, "bring every gradient into [-X, X]"),
    "clip_norm": (True, False, "largest norm of all gradients together"),
    "accumulate": (False, True, "batches per step of the optimizer"),
}
# Options of DATA that the winning command repeats.
DATA_OPTIONS = (
    "folder", "target", "sep", "decimal", "header", "encoding", "drop", "categorical", "missing", "standardize",
)  # fmt: skip


def add(commands: Any) -> None:
    """Add the parser of the command."""
    parser = commands.add_parser(
        "search",
        help="find learning rate, batch size, layers and other settings",
        description="Train networks of many settings, validate them on folds of the training rows, and print the best, "
        "with the command that trains it. Without ranges and lists learning rate, batch size and layers are searched.",
    )
    train_data.add_arguments(parser.add_argument_group("data"))

    space = parser.add_argument_group("settings", f"each is {FORMS}")
    space.add_argument("--layers", type=layers, metavar="WIDTHS", help="hidden layers, such as 32,64/128/none")
    space.add_argument("--activation", type=names(ACTIVATIONS), metavar="NAMES", help=", ".join(ACTIVATIONS))
    space.add_argument("--optimizer", type=names(OPTIMIZER_CLASSES), metavar="NAMES", help=", ".join(OPTIMIZER_CLASSES))
    for name, (is_logarithmic, whole, text) in NUMBERS.items():
        space.add_argument(_option(name), type=numbers(is_logarithmic, whole), metavar="X", help=text)

    training = parser.add_argument_group("training")
    training.add_argument(
        "--loss", type=canonical, choices=LOSSES, metavar="NAME", help=f"{', '.join(LOSSES)}; also {', '.join(ALIASES)}"
    )
    training.add_argument(
        "--convention", choices=CONVENTIONS, help="whose formulas and defaults the optimizer has (default: torch)"
    )
    training.add_argument(
        "--patience", type=integer(0), metavar="N", help="stop a training after N epochs in a row without improvement"
    )
    training.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="(default: float32)")
    training.add_argument("--seed", type=integer(0), default=0, help="of all random numbers (default: 0)")
    training.add_argument("--backend", choices=_backends.MODULES, default=_backends.DEFAULT, help="(default: cpu)")
    training.add_argument("--threads", type=integer(1), metavar="N", help="of the compiled kernels")

    trials = parser.add_argument_group("search")
    count = trials.add_mutually_exclusive_group()
    count.add_argument("--trials", type=integer(1), metavar="N", help="number of trials (default: 20)")
    count.add_argument("--grid", action="store_true", help="try all combinations; settings are lists, or LOW:HIGH:N")
    trials.add_argument("--random", action="store_true", help="draw settings at random, not by Optuna's TPE")
    trials.add_argument("--cv", type=integer(1), default=3, metavar="K", help="folds; 1 holds out a fifth (default: 3)")
    trials.add_argument(
        "--monitor", metavar="NAME", help="figure to search by (default: val_accuracy of classes, else val_loss)"
    )
    trials.add_argument(
        "--prune", action=argparse.BooleanOptionalAction, default=True, help="give up trials below the median so far"
    )
    trials.add_argument("--jobs", type=integer(1), default=1, metavar="N", help="trials at a time (default: 1)")
    trials.add_argument("--timeout", type=float, metavar="SECONDS", help="begin no trial after so long")
    trials.add_argument(
        "--storage", metavar="URL", help="database of the trials, which processes share, such as sqlite:///trials.db"
    )
    trials.add_argument("--name", metavar="NAME", help="of the study in the database (default: that of DATA)")
    trials.add_argument("--resume", action="store_true", help="go on with the study, if it is there")
    trials.add_argument("--quiet", action="store_true", help="print nothing but the winning command")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Search as `args` say, and print the best trials and the command that trains the winner."""
    from ..search import _search
    from ..search._options import Options

    if args.grid and args.random:
        raise ValueError("give --grid or --random, not both")
    if args.validation_split:
        raise ValueError("--validation-split is for train: search validates by --cv")
    train_data.use_threads(args)
    options = Options(
        trials=args.trials, sampler="grid" if args.grid else "random" if args.random else "tpe", cv=args.cv,
        monitor=args.monitor, patience=args.patience, prune=args.prune, jobs=args.jobs, storage=args.storage,
        name=args.name or args.data, resume=args.resume, timeout=args.timeout, verbose=0 if args.quiet else "auto",
    )  # fmt: skip
    options.check()
    space = _space(args)
    data = train_data.load(args)
    task = train_data.task(args, data)
    result = _search.run(task, {"epochs": options.epochs, **space}, options)
    settings = {**result.best_settings, "epochs": result.best_epochs}
    command = _command(args, settings, {"epochs": options.epochs, "layers": (64, 32), "batch_size": 32})
    if args.quiet:
        print(command)
        return 0
    print(f"{data.name}: {task.rows:,} rows, {args.cv} fold{'s' * (args.cv > 1)}", "", result, "", sep="\n")
    print(f"Train the best with\n  {command}")
    return 0


def _space(args: argparse.Namespace) -> dict[str, Any]:
    """The space of the command line."""
    given = {name: getattr(args, name) for name in ("layers", "activation", "optimizer", *NUMBERS, "convention")}
    space = {name: value for name, value in given.items() if value is not None}
    if any(isinstance(value, list) or (isinstance(value, tuple) and name != "layers") for name, value in space.items()):
        return space
    if args.grid:
        raise ValueError("--grid needs lists of settings, such as --lr 1e-4:1e-1:4 --layers 32/64,32")
    return {**DEFAULT_SPACE, **space}


def _command(args: argparse.Namespace, settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """The command that trains a model of some settings on all training rows."""
    words = ["fastopt", "train", args.data]
    for name in DATA_OPTIONS:
        words += _words(name, getattr(args, name))
    words += _words("loss", args.loss)
    for name, value in {**defaults, **settings}.items():
        words += _words(name, value)
    if args.dtype != "float32":
        words += _words("dtype", args.dtype)
    if args.seed:
        words += _words("seed", args.seed)
    if args.backend != _backends.DEFAULT:
        words += _words("backend", args.backend)
    return shlex.join(words)


def _words(name: str, value: Any) -> list[str]:
    """An option with its value, as words of a command line."""
    if value is None or value is False or value == []:
        return [f"--no-{name}"] if name == "header" and value is False else []
    if value is True:
        return [_option(name)]
    if isinstance(value, list):
        return [word for each in value for word in (_option(name), str(each))]
    text = ",".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)
    return [_option(name), text]


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
