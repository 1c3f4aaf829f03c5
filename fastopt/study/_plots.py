"""Plots of a study as SVG pictures, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from ..reports.drawing import SETTINGS, svg
from ._findings import Findings
from ._summary import Point, counted
from ._timing import medians, timed_epochs

SIZE = (8.0, 4.6)  # inches
CURVE = 60  # points of a law
APART = 0.17, 0.09  # shares of an axis between the names of two models of the frontier, one of which must be kept


def plot(result: Findings) -> dict[str, bytes]:
    """The pictures by name: time, size, rows and frontier."""
    drawings: dict[str, Callable[[Findings, Any], None]] = {
        "time": draw_time, "size": draw_size, "rows": draw_rows, "frontier": draw_frontier,
    }  # fmt: skip
    with matplotlib.rc_context(SETTINGS):
        return {name: svg(figure(draw, result)) for name, draw in drawings.items()}


def figure(draw: Callable[[Findings, Any], None], result: Findings) -> Figure:
    """A figure with one panel."""
    made = Figure(figsize=SIZE, layout="constrained")
    draw(result, made.subplots())
    return made


def _colours(count: int) -> list[Any]:
    return [matplotlib.colormaps["viridis"](share) for share in np.linspace(0.0, 0.85, count)]


def _logarithmic(axis: Any, form: str) -> None:
    """Make an axis logarithmic, with plain numbers at 1, 2 and 5 of each decade."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(form)
    axis.set_minor_formatter(NullFormatter())


def draw_time(result: Findings, axis: Any) -> None:
    """Measured and predicted times of trainings against parameters, a colour for each number of rows."""
    found = medians(list(result.timings), result.machine)
    rows, size = result.grid.rows(result.rows), result.grid.batch_sizes[0]
    most = {count: timed_epochs(result.grid, count)[1] for count in rows}
    for count, colour in zip(rows, _colours(len(rows)), strict=True):
        cells = [cell for cell in found if cell[1:] == (count, size, most[count]) and cell[0] in result.grid.layers]
        cells.sort(key=lambda cell: result.shape.parameters(cell[0]))
        sizes = [result.shape.parameters(cell[0]) for cell in cells]
        label = f"{count:,} rows, {most[count]} epochs"
        axis.plot(sizes, [found[cell] for cell in cells], "o", color=colour, label=label)
        works = [result.shape.work(layers, rows, epochs, batch) for layers, rows, batch, epochs in cells]
        estimates = [result.time.seconds(work) for work in works]
        axis.plot(sizes, [estimate.value for estimate in estimates], color=colour, linewidth=1)
        low, high = ([getattr(estimate, end) for estimate in estimates] for end in ("low", "high"))
        axis.fill_between(sizes, np.maximum(low, 1e-9), high, color=colour, alpha=0.12, linewidth=0)
    _logarithmic(axis.xaxis, "{x:,.0f}")
    _logarithmic(axis.yaxis, "{x:g}")
    axis.set_ylim(bottom=0.5 * min(found.values()))
    axis.set(xlabel="parameters", ylabel="seconds")
    axis.legend(title=f"measured (dots) and predicted, batches of {size}", fontsize=8, title_fontsize=8)


def draw_size(result: Findings, axis: Any) -> None:
    """Test and training errors against parameters, a colour for each number of rows, with the law."""
    rows = result.grid.rows(result.rows)
    for count, colour in zip(rows, _colours(len(rows)), strict=True):
        own = [point for point in result.best_points if point.rows == count]
        own.sort(key=lambda point: result.shape.parameters(point.layers))
        sizes, scale = [result.shape.parameters(point.layers) for point in own], _scale(result)
        _errors(axis, sizes, own, scale, colour, f"{count:,} rows")
        axis.plot(sizes, [scale * p.train_error for p in own], ":", color=colour, linewidth=1)
        law = result.law_of_parameters if count == rows[-1] else None
        if law is not None and len(sizes) > 1:
            curve = np.geomspace(sizes[0], 2 * sizes[-1], CURVE)
            axis.plot(curve, [scale * law.error(x).value for x in curve], color=colour, linewidth=1)
    _logarithmic(axis.xaxis, "{x:,.0f}")
    axis.set(xlabel="parameters", ylabel=_title(result))
    axis.set_ylim(bottom=0)
    axis.legend(title="test (dots, line: the law), training (dotted)", fontsize=8, title_fontsize=8)


def draw_rows(result: Findings, axis: Any) -> None:
    """Test errors against rows, a colour for each size, with the law of the best size up to twice the data."""
    sizes = sorted(result.grid.layers, key=result.shape.parameters)
    scale = _scale(result)
    for layers, colour in zip(sizes, _colours(len(sizes)), strict=True):
        own = sorted((p for p in result.best_points if p.layers == layers), key=lambda p: p.rows)
        _errors(axis, [p.rows for p in own], own, scale, colour, result.shape.name(layers), line="-")
    law = result.law_of_rows
    if law is not None:
        rows = result.grid.rows(result.rows)
        curve = np.geomspace(rows[0], 2 * rows[-1], CURVE)
        axis.plot(curve, [scale * law.error(x).value for x in curve], "k--", linewidth=1, label="law of the best size")
    _logarithmic(axis.xaxis, "{x:,.0f}")
    axis.set(xlabel="training rows", ylabel=_title(result))
    axis.set_ylim(bottom=_bottom(axis.get_ylim()))
    axis.legend(fontsize=8)


def draw_frontier(result: Findings, axis: Any) -> None:
    """Test error against the time of the training: all models, and those that no other beats."""
    scale, frontier = _scale(result), result.frontier
    seconds = [choice.seconds.value for choice in result.choices]
    errors = [scale * choice.error for choice in result.choices]
    axis.plot(seconds, errors, "o", color="#bbbbbb", markersize=4, label="all models")
    times, least = [choice.seconds.value for choice in frontier], [scale * choice.error for choice in frontier]
    axis.plot(times, least, "o", color="#d62728", markersize=5, label="no other is both quicker and better")
    axis.step(times, least, color="#d62728", where="post", linewidth=1)
    _logarithmic(axis.xaxis, "{x:g}")
    axis.set(xlabel="seconds of training alone, predicted", ylabel=_title(result))
    axis.set_ylim(_bottom([0.9 * min(errors), *errors]), 1.05 * max(errors))
    axis.margins(x=0.2)
    axis.legend(fontsize=8)
    x = np.log(times) / max(np.ptp(np.log(seconds)), 1e-9)
    for i in _apart(x, np.array(least) / max(errors)):
        choice = frontier[i]
        name = f"{result.shape.name(choice.layers)}\n{choice.rows:,} rows, {counted(choice.epochs)}"
        axis.annotate(
            name, (times[i], least[i]), xytext=(-4, -3), textcoords="offset points", fontsize=6.5, ha="right", va="top"
        )


def _apart(x: np.ndarray, y: np.ndarray) -> list[int]:
    """Numbers of points whose names do not cover each other, the last and best one among them."""
    kept: list[int] = []
    for i in reversed(range(len(x))):
        if all(abs(x[i] - x[j]) > APART[0] or abs(y[i] - y[j]) > APART[1] for j in kept):
            kept.append(i)
    return kept


def _errors(axis: Any, x: list[int], own: list[Point], scale: float, colour: Any, label: str, line: str = "") -> None:
    """Mean test errors with their standard errors."""
    means, spreads = [scale * p.test_error for p in own], [scale * p.deviation for p in own]
    axis.errorbar(x, means, spreads, fmt=f"o{line}", color=colour, label=label, markersize=5, capsize=2, linewidth=1)


def _bottom(values: Sequence[float]) -> float:
    """End of an axis: 0, unless that would leave a third of it empty."""
    return min(values) if min(values) > max(values) / 3 else 0.0


def _scale(result: Findings) -> float:
    return 100.0 if result.is_classification else 1.0


def _title(result: Findings) -> str:
    return "test error, %" if result.is_classification else "mean squared error on the test rows"
