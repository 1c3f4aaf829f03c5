"""`fastopt train`: train a network on a data set or a file, and report speed and accuracy."""

from __future__ import annotations

import argparse
import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from .. import _backends, datasets
from .._files import check_writable
from ..conventions import NAMES as CONVENTIONS
from ..distributed import ENGINES, REDUCTIONS, is_one_of_several, together
from ..kernels.formulas import ACTIVATIONS, LOSSES
from ..losses import ALIASES, canonical
from ..optim import OPTIMIZER_CLASSES
from . import compression, train_data
from .arguments import batch_size, integer, widths
from .lr_schedules import SCHEDULES
from .train_data import CLASSIFICATION_LOSS, REGRESSION_LOSS, REGRESSION_LOSSES, targets


class Defaults(NamedTuple):
    """Values of options that are not given on the command line."""

    layers: tuple[int, ...]
    epochs: int
    batch_size: int


# digits: both backends are done within two seconds, at 92 %, because other people wrote its test rows.
DEFAULTS = {
    "digits": Defaults((64, 32), 30, 16),
    "fashion-mnist": Defaults((256, 128), 10, 64),
    "mnist": Defaults((256, 128), 10, 64),
}
FOR_FILES = Defaults((64, 32), 50, 32)


def add(commands: Any) -> None:
    """Add the parser of the command."""
    parser = commands.add_parser(
        "train",
        help="train a network and report speed and accuracy",
        description="Train a dense network; without arguments on handwritten digits, on the compiled kernels and on "
        "the NumPy reference from identical inputs.",
    )
    add_arguments(parser)
    parser.set_defaults(run=run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options for data, network, training and running."""
    data = parser.add_argument_group("data")
    train_data.add_arguments(data)

    network = parser.add_argument_group("network")
    network.add_argument("--layers", type=widths, metavar="WIDTHS", help="hidden layers, such as 128,64, or none")
    network.add_argument("--activation", choices=ACTIVATIONS, default="relu", metavar="NAME", help=_names(ACTIVATIONS))
    network.add_argument("--dropout", type=float, default=0.0, metavar="RATE", help="after every hidden layer")
    network.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="(default: float32)")
    network.add_argument(
        "--compute-dtype",
        choices=_backends.COMPUTE,
        help="what layers multiply, if not numbers of --dtype: bfloat16 (on cpu where the processor gains by it), or "
        "tf32 on cuda with --no-compare",
    )

    training = parser.add_argument_group("training")
    training.add_argument(
        "--loss", type=canonical, choices=LOSSES, metavar="NAME", help=f"{_names(LOSSES)}; also {_names(ALIASES)}"
    )
    training.add_argument(
        "--optimizer", choices=OPTIMIZER_CLASSES, default="adam", metavar="NAME", help=_names(OPTIMIZER_CLASSES)
    )
    training.add_argument(
        "--convention", choices=CONVENTIONS, help="whose formulas and defaults the optimizer has (default: torch)"
    )
    training.add_argument("--lr", type=float, help="learning rate (default: the optimizer's)")
    training.add_argument(
        "--schedule",
        choices=SCHEDULES,
        default="constant",
        help="what becomes of the learning rate until the last step: constant (the default), cosine and linear, which "
        "bring it down to 0, cosine-restarts, which does so three times, exponential, down to a hundredth, or "
        "one-cycle, up and down",
    )
    training.add_argument(
        "--warmup", type=integer(0), default=0, metavar="N", help="steps in which the learning rate rises from 0"
    )
    training.add_argument("--weight-decay", type=float, metavar="X", help="(default: the optimizer's)")
    training.add_argument("--l1", type=float, metavar="X", help="L1 penalty (default: 0)")
    training.add_argument("--clip-value", type=float, metavar="X", help="bring every gradient into [-X, X]")
    training.add_argument("--clip-norm", type=float, metavar="X", help="largest norm of all gradients together")
    training.add_argument("--momentum", type=float, metavar="X", help="of sgd, momentum and rmsprop")
    training.add_argument("--epochs", type=integer(1), metavar="N", help="(default: depends on DATA)")
    training.add_argument(
        "--batch-size", type=batch_size, metavar="N", help="rows, or full for all of them, or auto for a number that is"
        " chosen by the data and by a measurement (default: depends on DATA)",
    )
    training.add_argument(
        "--accumulate", type=integer(1), default=1, metavar="N", help="batches per step of the optimizer (default: 1)"
    )
    training.add_argument(
        "--patience",
        type=integer(0),
        metavar="N",
        help="stop when the loss on the held-out rows (without --validation-split, the training loss) has not improved "
        "for N epochs in a row, and take the best weights",
    )
    training.add_argument(
        "--max-steps", type=integer(1), metavar="N", help="end after N steps of the optimizer, if not before"
    )
    training.add_argument("--max-seconds", type=float, metavar="X", help="end after X seconds, if not before")
    training.add_argument("--seed", type=integer(0), default=0, help="of weights, batches and dropout (default: 0)")

    compression.add_arguments(parser)

    running = parser.add_argument_group("running")
    running.add_argument("--backend", choices=_backends.MODULES, default=_backends.DEFAULT, help="(default: cpu)")
    running.add_argument("--threads", type=integer(1), metavar="N", help="of the compiled kernels (NumPy has its own)")
    running.add_argument(
        "--compare",
        action=argparse.BooleanOptionalAction,
        help="train the NumPy reference as well, on the same inputs (default: for digits only)",
    )
    running.add_argument("--save", metavar="FILE", help="write the model (the compiled one) to a safetensors file")
    running.add_argument(
        "--checkpoint", metavar="FILE", help="write the state of the training to a file, from which --resume goes on"
    )
    running.add_argument(
        "--checkpoint-every",
        metavar="WHEN",
        help='number of steps between two checkpoints, or such as "5 min" or "2 epochs" (default: 1 epoch)',
    )
    running.add_argument(
        "--resume", action="store_true", help="go on from the file of --checkpoint, to the same bits, if it is there"
    )
    running.add_argument(
        "--distributed",
        choices=ENGINES,
        default="mpi" if is_one_of_several() else None,
        help="train one model with all processes that mpirun has started (mpirun -n 4 fastopt train DATA), the default "
        "there; the first one prints and writes files",
    )
    running.add_argument(
        "--reduction",
        choices=REDUCTIONS,
        default="fixed",
        help="sums over these processes: fixed (the default), the same bits for any number of them, or fast, MPI's own",
    )
    running.add_argument("--quiet", action="store_true", help="print nothing but the result")


def _names(table: Any) -> str:
    return ", ".join(table)


def run(args: argparse.Namespace, during: AbstractContextManager[Any] | None = None) -> int:
    """Train as `args` say and print the results; the context `during` is open while the epochs run."""
    if args.distributed is None:
        return _run(args, during)
    with together() as is_first:
        if not is_first:
            args.save, args.quiet = None, True
        return _run(args, during, prints=is_first)


def _run(args: argparse.Namespace, during: AbstractContextManager[Any] | None, prints: bool = True) -> int:
    from .experiment import Contestant, compete
    from .model_saver import ModelSaver
    from .train_output import Progress, headline, result

    backends = _contestants(args)
    if args.save is not None:
        check_writable("--save", args.save)
    if args.checkpoint is not None:
        check_writable("--checkpoint", args.checkpoint)
    data = train_data.load(args)
    experiment = _experiment(args, data)
    if args.threads is not None:
        from ..kernels.cpu.runtime.launch import set_num_threads

        set_num_threads(args.threads)
    if isinstance(args.batch_size, str):
        experiment = experiment.with_batch_size(args.batch_size, backends[0])
    contestants = [Contestant(experiment, backend) for backend in backends]
    if not args.quiet:
        print(headline(data, contestants), flush=True)
    saver = ModelSaver(contestants[0], args.save)
    with Progress(contestants, args.quiet) as progress, saver.on_signals():
        try:
            for contestant in contestants:
                contestant.warm_up(progress.compiling)
            with during or nullcontext():
                compete(contestants, progress.show)
            progress.close()
            saver.save()
        except KeyboardInterrupt:
            progress.close()
            return saver.save_after_interrupt()
        except OSError:  # the file cannot be written, but the results are complete
            if contestants[-1].test:
                print(result(contestants))
            raise
    if prints:
        print(result(contestants))
    if args.save is not None and not args.quiet:
        print(f"The model is saved in {args.save}; fastopt.load_model reads it.")
    return 0


def _contestants(args: argparse.Namespace) -> list[str]:
    """The backends to train on, the chosen one first."""
    if args.backend == "numpy" and args.compare:
        raise ValueError("--compare trains the compiled kernels and the reference: it needs --backend cpu or cuda")
    if args.checkpoint is None and (args.resume or args.checkpoint_every is not None):
        raise ValueError("--resume and --checkpoint-every need --checkpoint")
    if args.checkpoint is not None and args.compare:
        raise ValueError("a checkpoint is of one training: --checkpoint needs --no-compare")
    if args.backend != "cpu" and args.threads is not None:
        raise ValueError("--threads is for the compiled kernels: it needs --backend cpu")
    if args.distributed is not None and args.compare:
        raise ValueError("--distributed trains one model: it needs --no-compare")
    if args.distributed is not None and args.batch_size == "auto":
        raise ValueError("--distributed needs a --batch-size that all ranks share, not auto, which is measured")
    compare = False if args.distributed is not None else args.compare
    if compare is None:
        compare = args.data == "digits" and args.backend != "numpy" and args.checkpoint is None
    return [args.backend, "numpy"] if compare else [args.backend]


def _experiment(args: argparse.Namespace, data: datasets.Dataset) -> Any:
    from .experiment import Experiment

    defaults = DEFAULTS.get(args.data, FOR_FILES)
    hidden = defaults.layers if args.layers is None else args.layers
    if args.dropout and not hidden:
        raise ValueError("--dropout comes after hidden layers, and --layers none has none")
    loss = args.loss or (CLASSIFICATION_LOSS if data.classes else REGRESSION_LOSS)
    target = targets(data, loss)
    features = "float64" if args.standardize else args.dtype  # scaled before they are rounded
    rows = args.batch_size or defaults.batch_size
    return Experiment(
        x=data.x_train.astype(features, copy=False),
        y=target.y,
        x_test=data.x_test.astype(features, copy=False),
        y_test=target.y_test,
        outputs=target.outputs,
        metrics=target.metrics,
        loss=loss,
        labels=data.labels if target.metrics == ("accuracy",) else None,
        preparation=None if data.preparation is None else data.preparation.to_dict(),
        standardize=args.standardize,
        standardize_targets=args.standardize and loss in REGRESSION_LOSSES,
        hidden=hidden,
        activation=args.activation,
        dropout=args.dropout,
        optimizer=args.optimizer,
        hyper=_hyper(args),
        schedule=args.schedule,
        warmup=args.warmup,
        epochs=args.epochs or defaults.epochs,
        batch_size=min(rows if isinstance(rows, int) else defaults.batch_size, len(data.x_train)),
        accumulate=args.accumulate,
        validation_split=args.validation_split,
        patience=args.patience,
        dtype=args.dtype,
        compute_dtype=args.compute_dtype,
        seed=args.seed,
        max_steps=args.max_steps,
        max_seconds=args.max_seconds,
        checkpoint=args.checkpoint,
        checkpoint_every=_every(args.checkpoint_every),
        resume=args.resume,
        distributed=args.distributed,
        reduction=args.reduction,
        pruning=compression.pruning_of(args),
        quantize=args.quantize,
    )


def _every(text: str | None) -> int | str | None:
    """The distance between two checkpoints, as `fit` takes it."""
    if text is None:
        return None
    from ..models._limits import every

    value = int(text) if text.isdigit() else text
    every(value)  # ValueError before the work begins
    return value


def _hyper(args: argparse.Namespace) -> dict[str, Any]:
    if args.convention == "optax" and args.lr is None:
        raise ValueError("--convention optax needs --lr: optax has no default learning rate")
    if args.schedule == "one-cycle" and args.warmup:
        raise ValueError("--warmup is for the other schedules: one-cycle has its own")
    names = ("lr", "weight_decay", "l1", "clip_value", "clip_norm", "momentum", "convention", "state_bits")
    hyper = {name: value for name in names if (value := getattr(args, name)) is not None}
    known = inspect.signature(OPTIMIZER_CLASSES[args.optimizer]).parameters
    for name in hyper:
        if name not in known:
            takers = [key for key, make in OPTIMIZER_CLASSES.items() if name in inspect.signature(make).parameters]
            raise ValueError(f"--{name.replace('_', '-')} is for {', '.join(takers)}, not for {args.optimizer}")
    return hyper
