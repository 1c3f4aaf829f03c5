"""Time of a step against ranks, up to 1,024, as the model of `fastopt.distributed` predicts it; as an SVG picture.

    python -m fastopt.benchmarks.scaling_curves scaling.svg
    python -m fastopt.benchmarks.scaling_curves scaling.svg --latency 1.5e-6 --overhead 4e-7 --gigabytes 12.5

The rates of a rank are those of a step that is measured here, on one thread; the links are those between two ranks of
this machine, unless they are given.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastopt.benchmarks.scaling import Task, contest, cost_of_step, measured_links
from fastopt.distributed import Links, StepCost, StepTime, best_ranks, dense_step, ranks_that_pay, step_time

MOST_RANKS = 1024
ROWS_OF_RANK = 128  # of a step: a piece
SIZES = {"1e5": (10**5, 1), "1e7": (10**7, 2), "1e9": (10**9, 20)}  # parameters, and calls that exchange them
MEASURED = Task((1024, 4096, 4096, 10), 256, 4)
LARGE_BYTES = 32 << 20


class Rates(NamedTuple):
    """Rates of a rank, and the seconds of a step that do not depend on the network."""

    flops_per_second: float
    bytes_per_second: float
    fixed_seconds: float

    def step(self, parameters: int, rows: int, calls: int) -> StepCost:
        """The cost of a step of a dense network."""
        return dense_step(parameters, rows, self.flops_per_second, self.bytes_per_second, self.fixed_seconds, calls)


def rates_of(step: StepCost, parameters: int, rows: int) -> Rates:
    """The rates by which `dense_step` has the cost of a step that was measured.

    >>> rates = Rates(1e11, 2e10, 3e-5)
    >>> found = rates_of(rates.step(10**7, 256, 1), 10**7, 256)
    >>> [round(a / b, 6) for a, b in zip(found, rates)]
    [1.0, 1.0, 1.0]
    """
    bandwidth = 7 * step.nbytes / step.update_seconds
    products = step.pieces_seconds - step.pieces * 5 * step.nbytes / bandwidth
    if products <= 0:
        raise ValueError(f"pieces_seconds must be more than their memory's time; got {step.pieces_seconds} s")
    return Rates(6 * parameters * rows / products, bandwidth, step.fixed_seconds)


def measured_rates() -> Rates:
    """The rates of one thread of this machine."""
    told = contest(MEASURED, ["one-rank-1"], 3)["one-rank-1"]
    return rates_of(cost_of_step(told[1:]), MEASURED.parameters, MEASURED.rows)


def strong(rates: Rates, links: Links) -> dict[str, list[StepTime]]:
    """Times by network of a step of 131,072 rows, a piece for each of 1,024 ranks."""
    found = {}
    for name, (parameters, calls) in SIZES.items():
        step = rates.step(parameters, ROWS_OF_RANK * MOST_RANKS, calls)
        found[name] = [step_time(step, links, ranks) for ranks in _ranks()]
    return found


def weak(rates: Rates, links: Links) -> dict[str, list[StepTime]]:
    """Times by network of a step of 128 rows for each rank."""
    return {
        name: [step_time(rates.step(parameters, ROWS_OF_RANK * ranks, calls), links, ranks) for ranks in _ranks()]
        for name, (parameters, calls) in SIZES.items()
    }


def _ranks() -> list[int]:
    return [1 << k for k in range(MOST_RANKS.bit_length())]


def table(rates: Rates, links: Links) -> list[str]:
    """Lines of text: for each network the ranks up to which a doubling pays, and those that are fastest."""
    lines = [
        f"{'parameters':>10} {'1 rank':>12} {'pays up to':>12} {'fastest':>8} {'speed-up':>9} {'communication':>14}"
    ]
    for name, (parameters, calls) in SIZES.items():
        step = rates.step(parameters, ROWS_OF_RANK * MOST_RANKS, calls)
        pays, best = ranks_that_pay(step, links, MOST_RANKS), best_ranks(step, links, MOST_RANKS)
        speed_up = step.seconds / best.seconds
        lines.append(
            f"{name:>10} {step.seconds:>10.3g} s {pays.ranks:>12} {best.ranks:>8} {speed_up:>9.0f} {best.share:>14.0%}"
        )
    return lines


def draw(curves: Mapping[str, Mapping[str, Sequence[StepTime]]], same_rows: str) -> bytes:
    """Return an SVG picture with a panel for each title: seconds against ranks, communication dashed.

    same_rows: title of the panel whose steps have the same rows for any number of ranks; it has a dot at the fastest.
    """
    import matplotlib
    from matplotlib.figure import Figure

    from fastopt.reports.drawing import SETTINGS, logarithmic, svg

    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(5 * len(curves), 4), layout="constrained")
        axes: Any = figure.subplots(1, len(curves), squeeze=False).ravel()
        for axis, (title, networks) in zip(axes, curves.items(), strict=True):
            for number, (name, times) in enumerate(networks.items()):
                ranks, colour = [time.ranks for time in times], f"C{number}"
                best = min(times, key=lambda time: time.seconds)
                axis.plot(ranks, [time.seconds for time in times], color=colour, label=f"{name} parameters")
                axis.plot(ranks[1:], [time.communication for time in times[1:]], "--", color=colour, linewidth=1)
                if title == same_rows:
                    axis.plot(best.ranks, best.seconds, "o", color=colour)
            logarithmic(axis)
            axis.set(title=title, xlabel="ranks", ylabel="seconds a step; dashed: communication")
            axis.legend(fontsize=7)
        return svg(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw what the command line asks for, and print where more ranks stop paying."""
    parser = argparse.ArgumentParser(description="Draw the time of a step against ranks, as predicted.")
    parser.add_argument("svg", type=Path, help="file of the picture")
    parser.add_argument("--latency", type=float, help="L of the links, seconds (default: measured here)")
    parser.add_argument("--overhead", type=float, default=4e-7, help="o of a processor, seconds (default: 4e-7)")
    parser.add_argument("--gigabytes", type=float, default=12.5, help="a second between ranks (default: 12.5)")
    args = parser.parse_args(arguments)
    if args.latency is None:
        links = measured_links(LARGE_BYTES)
    else:
        links = Links(args.latency, args.overhead, 1e-9 / args.gigabytes)
    rates = measured_rates()
    print(rates, links, *table(rates, links), sep="\n")
    rows = ROWS_OF_RANK * MOST_RANKS
    same_rows = f"{rows:,} rows a step"
    curves = {same_rows: strong(rates, links), f"{ROWS_OF_RANK} rows a rank": weak(rates, links)}
    args.svg.write_bytes(draw(curves, same_rows))


if __name__ == "__main__":
    main()
