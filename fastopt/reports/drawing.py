"""Settings of matplotlib for reports, and figures as SVG pictures. Modules that draw need it, and no others."""

from __future__ import annotations

import io
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

# Dollar signs in texts start no formula; the fixed salt makes the same file of the same data.
SETTINGS: Any = {
    "text.parse_math": False,
    "svg.hashsalt": "fastopt",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
}


def svg(figure: Figure) -> bytes:
    """A figure as an SVG picture; the same bytes for the same data."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    return buffer.getvalue()


def logarithmic(axis: Any) -> None:
    """Make both axes logarithmic, with plain numbers as labels."""
    axis.set(xscale="log", yscale="log")
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter("{x:g}")
        side.set_minor_formatter(NullFormatter())
