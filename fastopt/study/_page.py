"""Page of a study: answers, plots and tables in one HTML file."""

from __future__ import annotations

from importlib.util import find_spec

from ..reports.page import document
from ..reports.sections import Section
from ._findings import Findings
from ._words import error_words, law_words, seconds_words, time_words

TITLE = "fastopt: study of size, data and time"


def page(result: Findings) -> str:
    """The page; without matplotlib it has tables only."""
    plots: dict[str, bytes] = {}
    if find_spec("matplotlib") is not None:
        from ._plots import plot

        plots = plot(result)
    header, grid = result.header, result.grid
    facts = [
        f"{header['rows']:,} rows to train on, {header['test_rows']:,} to test on, {header['inputs']} features,"
        f" {header['outputs']} output{'s' * (header['outputs'] > 1)}, loss {header['loss']}",
        f"{len(grid.layers)} sizes, {len(grid.shares)} shares of the data, epochs {', '.join(map(str, grid.epochs))},"
        f" batches of {', '.join(map(str, grid.batch_sizes))}, {len(grid.seeds)} seeds; {header['dtype']}"
        + "".join(f", {name} {value}" for name, value in header["settings"].items()),
        f"Times are of {result.machine}",
    ]
    return document(TITLE, facts, sections(result), plots)


def sections(result: Findings) -> list[Section]:
    """The parts of the page."""
    parameters, rows = result.law_of_parameters, result.law_of_rows
    sizes = "No law: it needs three sizes." if parameters is None else law_words(result, parameters, "On all rows")
    shares = "No law: it needs three shares of the data." if rows is None else law_words(result, rows, "Best size")
    more = [sentence for sentence in error_words(result) if sentence.startswith("Twice the data")]
    return [
        Section("Answers", " ".join([error_words(result)[0], *more]), []),
        Section("Time against size", " ".join(time_words(result)), _terms(result), "time"),
        Section("Error against size", sizes, _verdicts(result), "size"),
        Section("Error against rows", shares, [], "rows"),
        Section("Frontier", "Models that no other beats in time and error both.", _frontier(result), "frontier"),
        Section("All models", "Each at the epochs and the batch size that are best for it.", result.table_rows()),
    ]


def _verdicts(result: Findings) -> list[list[str]]:
    most = result.grid.rows(result.rows)[-1]
    found = [(point, judged) for point, judged in result.verdicts if point.rows == most]
    rows = [[result.shape.name(point.layers), f"{judged.kind}: {judged.reason}"] for point, judged in found]
    return [["layers", "on all rows"], *rows]


def _terms(result: Findings) -> list[list[str]]:
    rows = [["term of the regression", "seconds for one", "95 % from", "to"]]
    for name, estimate in result.time.terms:
        rows.append([name, *(f"{value:.3g}" for value in estimate)])
    return rows


def _frontier(result: Findings) -> list[list[str]]:
    rows = [["layers", "parameters", "rows", "batch", "epochs", "test error", "time (95 %)"]]
    for choice in result.frontier:
        rows.append([
            result.shape.name(choice.layers), f"{choice.parameters:,}", f"{choice.rows:,}", str(choice.batch_size),
            str(choice.epochs), result.shown_error(choice.error),
            seconds_words(choice.seconds, interval=True),
        ])  # fmt: skip
    return rows
