"""The page of a survey, and its verdict of one screen: both are made from the records alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastopt.benchmarks.cuda.goals import FIGURES, verdict_of
from fastopt.benchmarks.cuda.records import BENCHMARKS, NAME, PAGE, Folder

WIDTH = 160  # characters of a line on the screen
LINES = 60  # of the verdict
SOME = 8  # problems of one kind that the verdict names
GOOD = ("passed", "skipped")
TITLES = {"smoke": "Smoke checks", "suite": "Suites of benchmarks", "sanitizer": "compute-sanitizer"}

Records = Mapping[str, Mapping[str, Any]]


def write(folder: Folder) -> None:
    """Write the page, and the records of benchmarks as a file for `fastopt report`."""
    folder.write(PAGE, page(folder.latest()))
    measured = [noted for noted in folder.benchmarks() if isinstance(noted.get("stats"), dict)]
    if measured:
        gpu = _data(folder.latest(), "facts").get("gpu") or {}
        when = next((str(noted["datetime"]) for noted in measured if "datetime" in noted), "")
        data = {"machine_info": {"gpu": gpu}, "datetime": when, "benchmarks": measured}
        folder.write(BENCHMARKS, json.dumps(data, indent=1, default=str))


# ---------------------------------------------------------------- what both are made of
def _data(records: Records, stage: str) -> dict[str, Any]:
    data = records.get(stage, {}).get("data")
    return data if isinstance(data, dict) else {}


def _of(records: Records, group: str) -> dict[str, Mapping[str, Any]]:
    """Stages of a group, by their names in it."""
    return {name.partition("/")[2]: record for name, record in records.items() if name.startswith(f"{group}/")}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def figures(records: Records) -> list[tuple[str, str, str, str, str]]:
    """Return a row for every goal: the figure, the goal, what was measured, the share, the verdict."""
    rows = []
    for name, figure in FIGURES.items():
        record = records.get(f"figure/{name}", {"status": "not run", "line": ""})
        data = _data(records, f"figure/{name}")
        for number, goal in enumerate(figure.goals):
            measured = _mapping(data.get("measured"))
            found = verdict_of(goal, measured)
            share = f"{measured[goal.what]:.3g}" if found != "not measured" else ""
            text = measured_text(data, goal.who)
            if found == "not measured":
                missing = "; ".join(f"{who}: {why}" for who, why in _mapping(data.get("absent")).items())
                text = ": ".join(filter(None, (str(record["status"]), missing or str(record.get("line", "")))))
            title = figure.title if not number else ""
            rows.append((title, f"{goal.text} {goal.what}", text, share, found))
    return rows


def measured_text(data: Mapping[str, Any], who: str) -> str:
    """Return the time of a contestant, and bytes a second if they are known."""
    seconds = _mapping(data.get("seconds")).get(who)
    if not isinstance(seconds, int | float):
        return ""
    text = duration(seconds)
    if isinstance(data.get("moved"), int | float) and seconds > 0:
        text += f", {data['moved'] / seconds / 1e12:.2f} TB/s"
    return text


def duration(seconds: float) -> str:
    """Return seconds in the unit that fits.

    >>> duration(0.00312), duration(4.2e-05), duration(90)
    ('3.12 ms', '42 us', '90 s')
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def counted(records: Iterable[Mapping[str, Any]]) -> str:
    """Return the number of stages of each status."""
    counts = Counter(str(record["status"]) for record in records)
    return ", ".join(f"{count} {status}" for status, count in counts.items()) or "none was run"


def problems(records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line for each problem of stages that neither passed nor were skipped, with their names."""
    found: dict[str, list[str]] = {}
    for name, record in records.items():
        if record["status"] not in GOOD:
            found.setdefault(f"{record['status']}: {record.get('line', '')}", []).append(name)
    return [f"{', '.join([*names[:3], *['...'] * (len(names) > 3)])}: {what}" for what, names in found.items()]


def failures(record: Mapping[str, Any]) -> list[str]:
    """Return a line for every test that has failed."""
    found = _mapping(record.get("data")).get("failures")
    some = found if isinstance(found, list) else []
    return [f"{f.get('test')}: {f.get('what')}" for f in some if isinstance(f, dict)]


# ---------------------------------------------------------------- the screen
def verdict(folder: Folder) -> str:
    """Return the verdict in at most LINES lines."""
    records = folder.latest()
    lines = ["", "=" * 20 + " verdict", _line(records, "facts"), _line(records, "clocks"), ""]
    for title, goal, measured, share, found in figures(records):
        shown = found.upper() if found == "missed" else found
        lines.append(f"{shown:<14} {title:<48} {goal:<40} {share:>8}  {measured}")
    lines.append("")
    for group in ("smoke", "suite", "sanitizer"):
        own = _of(records, group)
        lines.append(f"{TITLES[group]}: {counted(own.values())}")
        lines += _some(problems(own))
    for name in ("warmup", "tests"):
        lines.append(_line(records, name))
    lines += _some(failures(records.get("tests", {})))
    left_out = [name for name, record in records.items() if record["status"] == "not run"]
    if left_out:
        lines.append(f"not run, --resume does: {len(left_out)}: {' '.join(left_out)}")
    lines.append(f"records, page and logs: {folder.path}")
    lines = [line[:WIDTH] for line in lines]
    if len(lines) > LINES:
        lines = [*lines[: LINES - 2], f"[... {len(lines) - LINES + 1} more lines: see {PAGE} ...]"[:WIDTH], lines[-1]]
    return "\n".join(lines)


def _line(records: Records, stage: str) -> str:
    record = records.get(stage)
    return f"{stage}: {record['status']}: {record.get('line', '')}" if record else f"{stage}: not run"


def _some(lines: Sequence[str]) -> list[str]:
    more = [f"  ... and {len(lines) - SOME} more"] if len(lines) > SOME else []
    return [f"  {line}" for line in lines[:SOME]] + more


# ---------------------------------------------------------------- the page
def page(records: Records) -> str:
    """Return the page as Markdown."""
    facts = _data(records, "facts")
    gpu = _mapping(facts.get("gpu"))
    name = gpu.get("name") or "no GPU"
    when = str(records.get("facts", {}).get("when", ""))[:16]
    parts = [f"# Survey of {_cell(name)}{f', {when}' if when else ''}", _about(records, facts)]
    parts.append("## The figures\n\n" + table(("figure", "goal", "measured", "share", "verdict"), figures(records)))
    parts.append(_contestants(records))
    parts += [
        _group(records, "smoke"),
        _tests(records),
        _group(records, "suite"),
        _group(records, "sanitizer"),
        _others(records),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _about(records: Records, facts: Mapping[str, Any]) -> str:
    rows = [("before", records.get("facts", {}).get("line", "")), ("after", records.get("clocks", {}).get("line", ""))]
    versions = _mapping(facts.get("versions"))
    rows.append(("versions", ", ".join(f"{name} {v}" for name, v in versions.items() if v)))
    rows.append(("trouble", facts.get("trouble") or "none"))
    rows.append(("missing", ", ".join(map(str, facts.get("missing") or [])) or "nothing"))
    rows.append(("tools", ", ".join(f"{n} {p or 'none'}" for n, p in _mapping(facts.get("tools")).items())))
    rows.append(("processor", str(_mapping(facts.get("processor")).get("name", ""))))
    return table(("", ""), rows)


def _contestants(records: Records) -> str:
    """Times of all contestants, with the copy of the same run and the clocks."""
    rows = []
    for name, figure in FIGURES.items():
        data = _data(records, f"figure/{name}")
        if not data:
            continue
        seconds = {who: s for who, s in _mapping(data.get("seconds")).items() if isinstance(s, int | float)}
        copy = f"{data['copy'] / 1e12:.3f} TB/s" if isinstance(data.get("copy"), int | float) else ""
        clock = ", ".join(str(_mapping(data.get(at)).get("clocks.sm", "")) for at in ("before", "after")).strip(", ")
        missing = "; ".join(f"{who}: {why}" for who, why in _mapping(data.get("absent")).items())
        times = "; ".join(f"{who} {duration(s)}" for who, s in seconds.items())
        rows.append((figure.title, times, copy, clock, missing))
    if not rows:
        return ""
    heading = "figure", "times", "copy", "clock before, after", "absent"
    return "Medians, a process each:\n\n" + table(heading, rows)


def _group(records: Records, group: str) -> str:
    own = _of(records, group)
    rows = [(name, r["status"], _seconds(r), r.get("line", "")) for name, r in own.items()]
    more = "\n\n`fastopt report " + BENCHMARKS + "` makes tables of what was measured." if group == "suite" else ""
    text = f"## {TITLES[group]}\n\n{counted(own.values())}{more}"
    for name, record in own.items() if group == "suite" else ():
        text += "".join(f"\n- {_cell(name)}: {_cell(line)}" for line in failures(record))
    return f"{text}\n\n{table(('', 'status', 'seconds', ''), rows)}" if rows else text


def _seconds(record: Mapping[str, Any]) -> str:
    seconds = record.get("seconds")
    return f"{seconds:.1f}" if isinstance(seconds, int | float) else ""


def _tests(records: Records) -> str:
    record = records.get("tests")
    if record is None:
        return "## Tests\n\nnot run"
    lines = [f"{record['status']}, {_seconds(record)} s: {_cell(record.get('line', ''))}"]
    lines += [f"- {_cell(line)}" for line in failures(record)]
    return "## Tests\n\n" + "\n".join([lines[0], "", *lines[1:]] if lines[1:] else lines)


def _others(records: Records) -> str:
    known = (*TITLES, "figure", "facts", "clocks", "tests")
    rows = [
        (name, r["status"], _seconds(r), r.get("line", ""))
        for name, r in records.items()
        if name.partition("/")[0] not in known
    ]
    text = f"All of it from `{NAME}`; what stages printed is in the archive of logs beside it."
    return f"## The rest\n\n{table(('', 'status', 'seconds', ''), rows)}\n\n{text}" if rows else text


def table(heading: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table in Markdown.

    >>> print(table(["a"], [["x | y"]]))
    | a |
    |---|
    | x \\| y |
    """
    lines = [heading, *rows]
    cells = ["| " + " | ".join(map(_cell, line)) + " |" for line in lines]
    return "\n".join([cells[0], "|" + "---|" * len(heading), *cells[1:]])


def _cell(value: Any) -> str:
    return " ".join(str(value).replace("|", "\\|").split())
