"""Plots of a report as SVG pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from textwrap import fill
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from .drawing import SETTINGS, logarithmic, svg
from .read import Result, Run
from .sections import OURS, changes, suffix

COLOURS = {OURS: "#d62728", "numpy": "#7f7f7f", "torch-fused": "#ff7f0e", "torch-default": "#ffbb78"}
COLOURS |= {"torch-foreach": "#ffbb78", "torch-graph": "#e377c2", "stream": "#000000", "cublaslt": "#2ca02c"}
COLOURS |= {"torch-compile": "#8c564b", "jax-step": "#9ecae1", "jax-scan": "#1f77b4", "sklearn": "#2ca02c"}
OTHER = "#9467bd"
MARKERS = {"update": "o", "step": "v", "dense": "s", "loss": "^", "kernel": "D"}
COLUMNS = 3
TITLE_CHARACTERS = 46  # of a line above a panel
MOST_CHANGES = 40


def plot(runs: Sequence[Run]) -> dict[str, bytes]:
    """Return SVG pictures by name: updates, roofline, epochs and change, without those that have no data."""
    pictures: dict[str, bytes] = {}
    with matplotlib.rc_context(SETTINGS):
        for i, run in enumerate(runs):
            drawn = {"epochs": _epochs(run), "updates": _updates(run), "roofline": _roofline(run)}
            drawn["change"] = _change(runs[i - 1], run) if i else None
            pictures |= {name + suffix(i, runs): svg(figure) for name, figure in drawn.items() if figure}
    return pictures


def side_by_side(runs: Sequence[Run]) -> dict[str, bytes]:
    """Return the picture `epochs` of several machines, or nothing if no run has epochs."""
    with matplotlib.rc_context(SETTINGS):
        results = [(run, result) for run in runs for result in run.of("epoch")]
        groups: dict[str, list[Result]] = {}
        for _, result in results:
            groups.setdefault(result.titled_work, []).append(result)
        figure = _panels(groups, 0.6 + 1.8 * len(runs), lambda axis, found: _draw_machines(axis, found, runs))
        return {"epochs": svg(figure)} if figure else {}


def _draw_machines(axis: Any, results: list[Result], runs: Sequence[Run]) -> None:
    """Bars of a workload, a block for each machine, with a dashed line at its products alone."""
    position, ticks = 0.0, []
    for run in runs:
        own = [result for result in run.of("epoch") if any(result is one for one in results)]
        own.sort(key=lambda result: result.seconds)
        top = position
        for result in own:
            axis.barh(position, result.seconds, color=COLOURS.get(result.contestant, OTHER))
            ticks.append((position, result.contestant_title))
            position += 1
        if own:
            axis.text(1, top - 0.55, run.processor, transform=axis.get_yaxis_transform(), ha="right", va="bottom",
                      fontsize=7)  # fmt: skip
            if own[0].limit_seconds:
                limit = own[0].limit_seconds
                axis.plot([limit, limit], [top - 0.5, position - 0.5], color="k", linestyle="--", linewidth=1)
            position += 0.8
    axis.set_yticks([at for at, _ in ticks], [title for _, title in ticks])
    axis.invert_yaxis()
    axis.set_xlabel("seconds per epoch")


def _panels(groups: dict[str, list[Result]], height: float, draw: Callable[[Any, list[Result]], None]) -> Figure | None:
    """A figure with a panel for each group."""
    if not groups:
        return None
    columns = min(COLUMNS, len(groups))
    rows = math.ceil(len(groups) / columns)
    figure = Figure(figsize=(4.2 * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(groups) :]:
        axis.remove()
    for axis, (title, results) in zip(axes, groups.items(), strict=False):
        axis.set_title(fill(title, TITLE_CHARACTERS), fontsize=9)
        draw(axis, results)
    return figure


def _grouped(results: Sequence[Result]) -> dict[str, list[Result]]:
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.titled_work, []).append(result)
    return groups


def _updates(run: Run) -> Figure | None:
    """Time against size, a panel for each rule, with the streaming limit."""
    return _panels(_grouped(run.of("update")), 3.0, _draw_updates)


def _draw_updates(axis: Any, results: list[Result]) -> None:
    for contestant in dict.fromkeys(result.contestant for result in results):
        own = sorted((r for r in results if r.contestant == contestant), key=lambda r: r.size)
        colour = COLOURS.get(contestant, OTHER)
        sizes, times = [r.size for r in own], [r.seconds for r in own]
        axis.plot(sizes, times, marker="o", markersize=4, color=colour, label=own[0].contestant_title)
    limits: dict[int, float] = {}
    for result in results:
        if result.limit_seconds:
            limits[result.size] = min(result.limit_seconds, limits.get(result.size, math.inf))
    if limits:
        axis.plot(*zip(*sorted(limits.items()), strict=True), "k--", linewidth=1, label="streaming limit")
    logarithmic(axis)
    axis.set(xlabel="parameters", ylabel="seconds")
    axis.legend(fontsize=7)


def _epochs(run: Run) -> Figure | None:
    """Bars of the time of an epoch, a panel for each workload."""
    return _panels(_grouped(run.of("epoch")), 2.4, _draw_epochs)


def _draw_epochs(axis: Any, results: list[Result]) -> None:
    best = sorted(results, key=lambda r: r.seconds)
    positions = range(len(best))
    axis.barh(positions, [r.seconds for r in best], color=[COLOURS.get(r.contestant, OTHER) for r in best])
    axis.set_yticks(positions, [r.contestant_title for r in best])
    axis.invert_yaxis()
    axis.set_xlabel("seconds per epoch")
    if best[0].limit_seconds:
        axis.axvline(best[0].limit_seconds, color="k", linestyle="--", linewidth=1)


def _roofline(run: Run) -> Figure | None:
    """Roofline: speed against operations per byte of every kernel, below the limits of memory and arithmetic."""
    points = [r for r in run.of(*MARKERS) if r.contestant == OURS and r.bytes and r.flops]
    if not points or not run.stream or not run.roof:
        return None
    figure = Figure(figsize=(10, 6), layout="constrained")
    axis = figure.subplots()
    intensities = [r.flops / r.bytes for r in points]
    ridge = run.roof / run.stream
    low, high = min(*intensities, ridge) / 2, max(*intensities, ridge) * 2
    corners = [low, ridge, high]
    axis.plot(corners, [min(x * run.stream, run.roof) / 1e9 for x in corners], "k-", label="limit of this machine")
    for dtype, peak in run.peaks.items():
        if len(run.peaks) > 1 or peak < run.roof:
            name = f"{dtype} products of {run.peak_by[dtype]}" if dtype in run.peak_by else dtype
            axis.plot([peak / run.stream, high], [peak / 1e9] * 2, "k--", linewidth=1)
            axis.annotate(name, (high, peak / 1e9), fontsize=6, ha="right", va="bottom")
    for kind, marker in MARKERS.items():
        own = [r for r in points if r.kind == kind]
        if own:
            xs, ys = [r.flops / r.bytes for r in own], [r.flops / r.seconds / 1e9 for r in own]
            axis.plot(xs, ys, marker, label=kind, alpha=0.6, markersize=5)
    fastest: dict[str, Result] = {}
    for r in points:  # names are written once, at the fastest point
        if r.name not in fastest or r.flops / r.seconds > fastest[r.name].flops / fastest[r.name].seconds:
            fastest[r.name] = r
    for r in fastest.values():
        point = (r.flops / r.bytes, r.flops / r.seconds / 1e9)
        axis.annotate(r.name, point, xytext=(4, 2), textcoords="offset points", fontsize=6)
    logarithmic(axis)
    axis.set(xlabel="operations per byte", ylabel="GFLOP/s")
    axis.legend(title=f"{run.stream / 1e9:.0f} GB/s, {run.roof / 1e9:.0f} GFLOP/s")
    return figure


def _change(before: Run, after: Run) -> Figure | None:
    """Bars of the time after / the time before, of the work that has changed most."""
    found = sorted(changes(before, after), key=lambda pair: -abs(math.log(pair[2] / pair[1])))[:MOST_CHANGES]
    if not found:
        return None
    found.sort(key=lambda pair: pair[1] / pair[2])
    figure = Figure(figsize=(9, 0.8 + 0.22 * len(found)), layout="constrained")
    axis = figure.subplots()
    ratios, positions = [new / old for _, old, new in found], range(len(found))
    colours = ["#d62728" if ratio > 1 else "#2ca02c" for ratio in ratios]
    axis.barh(positions, [math.log2(ratio) for ratio in ratios], color=colours)
    axis.set_yticks(positions, [f"{r.label}, {r.contestant_title}" for r, _, _ in found], fontsize=7)
    axis.invert_yaxis()
    axis.axvline(0, color="k", linewidth=1)
    axis.set_xlabel("log2(time after / time before): below 0 is faster")
    return figure
