"""`fastopt export`: a saved model as a file of another program."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from .._files import check_writable

SUFFIXES = {"onnx": ".onnx", "torch": ".pt", "numpy": ".py"}


def add(commands: Any) -> None:
    """Add the parser of the command."""
    parser = commands.add_parser(
        "export",
        help="write a saved model for another program",
        description="Write a saved model as a file of another program, with the same predictions for the numbers that "
        "the network takes. What cannot be carried over is refused by name.",
    )
    parser.add_argument("model", metavar="MODEL", help="file of a model, as `fastopt train --save` writes it")
    parser.add_argument(
        "--to", required=True, choices=list(SUFFIXES),
        help="onnx: float32, for onnxruntime and others (extra `onnx`); torch: an nn.Sequential, for "
        "torch.load(FILE, weights_only=False) (extra `torch`); numpy: a Python file that needs NumPy alone",
    )  # fmt: skip
    parser.add_argument("--out", metavar="FILE", help="file to write (default: MODEL with .onnx, .pt or .py)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the file, and print its name."""
    from ..models.loading import load_model

    out = args.out or str(Path(args.model).with_suffix(SUFFIXES[args.to]))
    check_writable("--out", out)
    if Path(out).exists() and Path(args.model).exists() and Path(out).samefile(args.model):
        raise ValueError(f"--out {out}: it is the model, which would be overwritten")
    model = load_model(args.model)
    _write(args.to, model, out)
    if model.preparation is not None:
        print(
            "fastopt: the file takes features as numbers in the network's order; tables are brought into that form by "
            "`fastopt predict` alone",
            file=sys.stderr,
        )
    print(out)
    return 0


def _write(to: str, model: Any, out: str) -> None:
    from .. import _files, export

    if to == "onnx":
        export.to_onnx(model, out)
    elif to == "numpy":
        export.to_numpy(model, out)
    else:
        import io

        module = export.to_torch(model)
        import torch

        content = io.BytesIO()
        torch.save(module, content)
        _files.write(out, content.getvalue())
