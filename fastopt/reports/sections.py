"""Tables of a report: rows of plain text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import exp, fsum, log
from typing import NamedTuple

from .._text import in_bytes, in_one_unit, rounded
from .read import Result, Run

OURS = "fastopt"
SUMMARY_KINDS = ("epoch", "step", "loop", "memory", "program", "accuracy")  # beside large updates
LARGE = 10_000_000  # least number of parameters of a large update
LARGE_ON_GPU = 100_000_000  # the same on a GPU, of float32 alone: every rule has smaller ones


class Section(NamedTuple):
    """A table with its title and a line of text; the first of `rows` is the heading, `plot` the name of its picture."""

    title: str
    text: str
    rows: list[list[str]]
    plot: str = ""


def sections(runs: Sequence[Run]) -> list[Section]:
    """Return the tables of every run; each run but the first also has one of its changes since the run before."""
    found = []
    for i, run in enumerate(runs):
        own = [_summary(run), _epochs(run), _loops(run), _updates(run), _tiny(run), _steps(run), _products(run)]
        own += [_kernels(run), _limits(run), _memory(run), *_compressed(run)]
        if i:
            own.append(_change(runs[i - 1], run))
        prefix = f"{run.path}: " if len(runs) > 1 else ""
        found += [
            part._replace(title=prefix + part.title, plot=f"{part.plot}{suffix(i, runs)}") for part in own if part.rows
        ]
    return found


def side_by_side(runs: Sequence[Run]) -> list[Section]:
    """Return the summary of several machines as one table, a column for each."""
    lines: dict[tuple[str, ...], list[str]] = {}
    words: dict[tuple[str, ...], list[str]] = {}
    for i, run in enumerate(runs):
        for line in _summary_lines(run):
            words.setdefault(line.key, [line.work, line.against])
            lines.setdefault(line.key, [""] * len(runs))[i] = line.compared
    rows = [[*words[key], *cells] for key, cells in lines.items()]
    text = f"Medians, each of one run on one machine, where contestants took turns. {RATIO}"
    heading = ["work", "against", *(run.processor for run in runs)]
    return [Section("Summary by processor", text, [heading, *rows], "epochs")] if rows else []


def suffix(i: int, runs: Sequence[Run]) -> str:
    """Return the ending of the names of run i's plots: nothing if there is only one run."""
    return f"-{i + 1}" if len(runs) > 1 else ""


def by_work(results: Iterable[Result]) -> dict[tuple, list[Result]]:
    """Return results grouped by their work: in each group ours first, then from the fastest to the slowest."""
    groups: dict[tuple, list[Result]] = {}
    for result in results:
        groups.setdefault(result.work, []).append(result)
    return {
        work: sorted(some, key=lambda result: (result.contestant != OURS, result.seconds))
        for work, some in groups.items()
    }


def _time(seconds: float) -> str:
    return in_one_unit([seconds])[0]


def _rate(amount: float, seconds: float) -> str:
    return rounded(amount / seconds / 1e9) if amount else ""


def _share(result: Result) -> str:
    return f"{result.limit_seconds / result.seconds:.2f}" if result.limit_seconds else ""


def _multiple(result: Result) -> str:
    return f"{result.seconds / result.limit_seconds:.2f}" if result.limit_seconds else ""


def _table(results: Iterable[Result], columns: Sequence[str], copy: float = 0.0) -> list[list[str]]:
    """A heading and rows of the chosen columns; empty without results. `copy` is the bytes a second of a copy."""
    rows = []
    for group in by_work(results).values():
        ours = group[0] if group[0].contestant == OURS else None
        for result in group:
            cells = {
                "work": result.titled_work,
                "shape": result.shape or f"{result.size:,}",
                "contestant": result.contestant_title,
                "time": _time(result.seconds),
                "ours / theirs": f"{ours.seconds / result.seconds:.2f}" if ours and result is not ours else "",
                "GB/s": _rate(result.bytes, result.seconds),
                "GFLOP/s": _rate(result.flops, result.seconds),
                "share of limit": _share(result),
                "of the products alone": _multiple(result),
                "share of copy": f"{result.bytes / result.seconds / copy:.2f}" if copy and result.bytes else "",
            }
            rows.append([cells[column] for column in columns])
    return [list(columns), *rows] if rows else []


RATIO = "ours / theirs: below 1, fastopt takes less time."


class _Line(NamedTuple):
    """A line of the summary: work of ours beside that of another contestant, or beside a limit."""

    key: tuple[str, ...]  # the same for the same line of another run
    work: str
    ours: str
    against: str = ""  # title of the other contestant
    theirs: str = ""
    ratio: str = ""

    @property
    def compared(self) -> str:
        """Figures of both and their ratio in one cell."""
        both = " / ".join(figure for figure in (self.ours, self.theirs) if figure)
        return f"{both} = {self.ratio}" if both and self.ratio else both or self.ratio


def _summary(run: Run) -> Section:
    """The figures that matter to users, a row for each other contestant."""
    rows = [
        [line.work, line.ours, " ".join(filter(None, (line.against, line.theirs))), line.ratio]
        for line in _summary_lines(run)
    ]
    text = f"Medians; contestants took turns. {RATIO}"
    return Section("Summary", text, [["work", "fastopt", "against", "ours / theirs"], *rows] if rows else [])


def _summary_lines(run: Run) -> Iterator[_Line]:
    chosen = [r for r in run.results if r.kind in SUMMARY_KINDS or (r.kind == "update" and _is_large(r, run.gpu))]
    for (kind, *_), (ours, *others) in by_work(chosen).items():
        if ours.contestant != OURS:
            continue
        work = _work(ours)
        for other in others:
            ratio = "" if kind == "accuracy" else f"{_amount(ours) / _amount(other):.2f}"
            key = work, other.contestant
            yield _Line(key, work, _value(ours), other.contestant_title, _value(other), ratio)
        if not others:
            yield _Line((work,), work, _value(ours))
        if kind == "update" and run.gpu and run.stream:
            copying = ours.bytes / run.stream
            ratio = f"{ours.seconds / copying:.2f}"
            yield _Line((work, "copy"), work, _value(ours), "copying as much", _time(copying), ratio)
        elif kind == "update" and ours.limit_seconds:
            limit, ratio = _time(ours.limit_seconds), f"{ours.seconds / ours.limit_seconds:.2f}"
            yield _Line((work, "limit"), work, _value(ours), "streaming limit", limit, ratio)
        elif kind == "epoch" and ours.limit_seconds and not run.gpu:
            limit = _time(ours.limit_seconds)
            yield _Line((work, "limit"), work, _value(ours), "its products alone", limit, _multiple(ours))
        if kind == "accuracy":
            ratio = f"{ours.fifth_over_first:.2f}"
            yield _Line((work, "epochs"), f"{ours.title}: epoch 5 against epoch 1", "", ratio=ratio)
    yield from _product_lines(run)


def _product_lines(run: Run) -> Iterator[_Line]:
    """Geometric means of products over all shapes of a group, against each library and the best of them."""
    groups: dict[str, list[list[Result]]] = {}
    for works in by_work(run.of("product")).values():
        if works[0].contestant == OURS and len(works) > 1:
            groups.setdefault(works[0].titled_work, []).append(works)
    for title, shapes in groups.items():
        work = f"{title}, {len(shapes)} shape{'s' * (len(shapes) > 1)}"
        names = {other.contestant: other.contestant_title for _, *others in shapes for other in others}
        rivals = {name: [[r for r in others if r.contestant == name] for _, *others in shapes] for name in names}
        if len(names) > 1:
            rivals["best"] = [others for _, *others in shapes]
        for name, found in rivals.items():
            pairs = [(ours, others[0]) for (ours, *_), others in zip(shapes, found, strict=True) if others]
            ratio = _mean(ours.seconds / other.seconds for ours, other in pairs)
            rates = [_mean(r.flops / r.seconds for r in side) / 1e9 for side in zip(*pairs, strict=True)]
            figures, against = [f"{rounded(rate)} GFLOP/s" for rate in rates], names.get(name, "the best of them")
            yield _Line((title, name), work, figures[0], against, figures[1], f"{ratio:.2f}")


def _mean(values: Iterable[float]) -> float:
    """The geometric mean."""
    logarithms = [log(value) for value in values]
    return exp(fsum(logarithms) / len(logarithms))


def _is_large(result: Result, gpu: bool) -> bool:
    return result.size >= (LARGE_ON_GPU if gpu else LARGE) and (not gpu or result.dtype == "float32")


def _work(result: Result) -> str:
    if result.kind == "update":
        return f"{result.title} update, {result.size / 1e6:g} M {result.dtype}"
    if result.kind == "step":
        return f"{result.title} step of {result.shape}"
    if result.kind == "loop":
        return f"{result.title}: {result.shape}"
    return {"memory": "memory for training ", "accuracy": "test accuracy: "}.get(result.kind, "") + result.title


def _amount(result: Result) -> float:
    return max(result.peak_bytes - result.before_bytes, 1) if result.kind == "memory" else result.seconds


def _value(result: Result) -> str:
    if result.kind == "memory":
        return in_bytes(int(_amount(result)))
    if result.kind == "accuracy":
        return f"{100 * result.accuracy:.2f} %"
    rate = f", {_rate(result.bytes, result.seconds)} GB/s" if result.kind == "update" else ""
    return _time(result.seconds) + rate


def _epochs(run: Run) -> Section:
    alone = "share of limit" if run.gpu else "of the products alone"
    columns = ("work", "contestant", "time", "ours / theirs", "GFLOP/s", alone)
    text = f"Median time of an epoch; all start from the same weights and see the same batches. {RATIO}"
    if not run.gpu:
        text += f" The last column is a multiple of the time of the products alone, at {_fastest(run)}."
    return Section("Epochs against other libraries", text, _table(run.of("epoch"), columns), "epochs")


def _updates(run: Run) -> Section:
    columns = ["work", "shape", "contestant", "time", "ours / theirs", "GB/s", "share of limit"]
    columns += ["share of copy"] * run.gpu
    text = f"In-place updates of one array; the limit is a loop that only streams the same arrays. {RATIO}"
    return Section("Optimizer updates", text, _table(run.of("update"), columns, run.stream), "updates")


def _steps(run: Run) -> Section:
    text = f"The method step of an optimizer, on several arrays. {RATIO}"
    columns = ["work", "shape", "contestant", "time", "ours / theirs", *["GB/s"] * run.gpu]
    return Section("Steps on many arrays", text, _table(run.of("step"), columns))


def _loops(run: Run) -> Section:
    text = f"A training loop in torch with Adam: the step by itself, and with forward and backward. {RATIO}"
    columns = ("work", "shape", "contestant", "time", "ours / theirs")
    return Section("Loops in torch", text, _table(run.of("loop"), columns))


def _tiny(run: Run) -> Section:
    rows = [["work", "shape", "contestant", "time", "of the usual time"]]
    usual_seconds: dict[tuple[str, int], float] = {}
    for result in run.of("tiny"):
        # Usual gradients come first.
        seconds = usual_seconds.setdefault((result.contestant, result.size), result.seconds)
        cells = [f"{result.title}, {result.size / 1e6:g} M", result.shape, result.contestant_title]
        rows.append([*cells, _time(result.seconds), f"{result.seconds / seconds:.2f}"])
    text = "Updates with gradients, or squares of gradients, below the smallest normal number, against usual ones."
    return Section("Tiny gradients", text, rows if len(rows) > 1 else [])


def _fastest(run: Run) -> str:
    """The rates of the fastest products, and who reached them."""
    by = {dtype: f" ({library})" for dtype, library in run.peak_by.items()}
    rates = {dtype: f"{_rate(peak, 1)} GFLOP/s" for dtype, peak in run.peaks.items()}
    if len(rates) == 1:
        return "".join(f"{rate} in large products{by.get(dtype, '')}" for dtype, rate in rates.items())
    return ", ".join(f"{rate} of {dtype}{by.get(dtype, '')}" for dtype, rate in rates.items()) + " in large products"


def _products(run: Run) -> Section:
    """A row for each product, with the rates of all contestants beside each other."""
    works = list(by_work(run.of("product")).values())
    titles = {result.contestant: result.contestant_title for group in works for result in group}
    rows = [["work", "shape", *titles.values(), "share of registers", "speed / best other's"]]
    for group in works:
        by = {result.contestant: result for result in group}
        rates = [_rate(by[name].flops, by[name].seconds) if name in by else "" for name in titles]
        ours, others = by.get(OURS), [result.seconds for result in group if result.contestant != OURS]
        speed = f"{min(others) / ours.seconds:.2f}" if ours and others else ""
        dtype = "" if group[0].dtype == "float32" else f", {group[0].dtype}"
        rows.append([f"{group[0].name}{dtype}", group[0].shape, *rates, _share(ours) if ours else "", speed])
    text = "GFLOP/s, by address from a compiled loop, one product on each thread. Shapes are rows x inputs x outputs. "
    text += "The share is ours of the operations in registers, measured in the same turns; a speed above 1 is faster."
    return Section("Matrix products", text, rows if len(rows) > 1 else [])


def _kernels(run: Run) -> Section:
    columns = ("work", "shape", "contestant", "time", "ours / theirs", "GB/s", "GFLOP/s", "share of limit")
    fmas = max((result.fma for result in run.results), default=0.0)
    limit = "arithmetic in registers" if fmas else "a large matrix product"
    text = f"The limit is {limit} for dense layers, streaming for losses. {RATIO}"
    if run.stream and run.roof:
        registers = f"{_rate(fmas, 1)} GFLOP/s in registers, " if fmas else ""
        text += f" Measured: {_rate(run.stream, 1)} GB/s streamed, {registers}{_fastest(run)}."
    # The plot shows the updates as well.
    return Section("Dense layers and losses", text, _table(run.of("dense", "loss", "kernel"), columns), "roofline")


def _limits(run: Run) -> Section:
    columns = ("work", "shape", "contestant", "time", "GB/s", "GFLOP/s")
    text = "What the machine did at best: copies count bytes read and written."
    return Section("Limits", text, _table(run.of("limit"), columns))


def _memory(run: Run) -> Section:
    text = "Resident memory: with libraries imported and data made, at most while training, and the difference."
    rows = [["work", "contestant", "before", "peak", "difference"]]
    for group in by_work(run.of("memory")).values():
        for result in group:
            before, peak = int(result.before_bytes), int(result.peak_bytes)
            sizes = (in_bytes(before), in_bytes(peak), in_bytes(max(0, peak - before)))
            rows.append([result.title, result.contestant_title, *sizes])
    return Section("Memory", text, rows if len(rows) > 1 else [])


def _compressed(run: Run) -> list[Section]:
    """A table for each network: a row for each way to compress it, a column for each size of a batch."""
    networks: dict[str, dict[str, list[Result]]] = {}
    for result in run.of("compressed"):
        networks.setdefault(result.name, {}).setdefault(result.contestant_title, []).append(result)
    text = "Bytes of the file, as a share of the parameters in float32; accuracy on the test data; time of `predict` in"
    text += " microseconds by the rows of a batch."
    found = []
    for name, ways in networks.items():
        sizes = sorted({int(result.rows) for results in ways.values() for result in results})
        rows = [[name, "bytes", "accuracy", *map(str, sizes)]]
        for title, results in ways.items():
            times = {int(result.rows): rounded(1e6 * result.seconds) for result in results}
            first = results[0]
            figures = [f"{first.share_of_bytes:.2f}", f"{100 * first.accuracy:.1f} %"]
            rows.append([title, *figures, *(times.get(size, "") for size in sizes)])
        found.append(Section(f"Compressed networks: {name}", text, rows))
    return found


def changes(before: Run, after: Run) -> list[tuple[Result, float, float]]:
    """Return (result, seconds before, seconds after) of the work in both runs, the largest growth first."""
    old = {(result.work, result.contestant): result.seconds for result in before.results}
    pairs = [
        (result, old[result.work, result.contestant], result.seconds)
        for result in after.results
        if (result.work, result.contestant) in old and result.kind not in ("memory", "accuracy")
    ]
    return sorted(pairs, key=lambda pair: pair[1] / pair[2])


def _change(before: Run, after: Run) -> Section:
    rows = [["benchmark", "contestant", "before", "after", "after / before"]]
    for result, old, new in changes(before, after):
        rows.append([result.label, result.contestant_title, _time(old), _time(new), f"{new / old:.2f}"])
    text = f"Since {before.path} ({before.when}); slowest first, only what both files have."
    return Section("Change", text, rows if len(rows) > 1 else [], "change")
