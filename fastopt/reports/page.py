"""Reports as Markdown and as one HTML page. Texts that come from files are escaped."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape

from .read import Run
from .sections import Section

TITLE = "fastopt: what was measured"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0; }
th, td { padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; }
"""


def markdown(runs: Sequence[Run], parts: Sequence[Section]) -> str:
    """Return the report as Markdown, without plots."""
    lines = [f"# {TITLE}", ""]
    lines += [f"- {_plain(f'{run.path}, {run.when}: {run.machine}')}" for run in runs]
    for part in parts:
        lines += ["", f"## {_plain(part.title)}", "", _plain(part.text), ""]
        heading, *rows = ([_plain(cell) for cell in row] for row in part.rows)
        for row in (heading, ["---"] * len(heading), *rows):
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    r"""Text on one line, with the characters escaped that mean something in Markdown.

    >>> print(_plain("a|b <i>\n*c*"))
    a\|b \<i\> \*c\*
    """
    return re.sub(r"([\\`|<>*_\[\]#&])", r"\\\1", " ".join(text.split()))


def html(runs: Sequence[Run], parts: Sequence[Section], plots: Mapping[str, bytes]) -> str:
    """Return the report as a page that needs no other file; `plots` are SVG pictures by name."""
    return document(TITLE, [f"{run.path}, {run.when}: {run.machine}" for run in runs], parts, plots)


def document(title: str, facts: Sequence[str], parts: Sequence[Section], plots: Mapping[str, bytes]) -> str:
    """Return a page that needs no other file: a list of facts, tables with their pictures, then all other pictures."""
    lines = ["<!DOCTYPE html>", '<html lang="en"><head><meta charset="utf-8">', f"<title>{escape(title)}</title>"]
    lines += [f"<style>{STYLE}</style></head><body>", f"<h1>{escape(title)}</h1>", "<ul>"]
    lines += [f"<li>{escape(fact)}</li>" for fact in facts]
    lines.append("</ul>")
    shown = set()
    for part in parts:
        lines += [f"<h2>{escape(part.title)}</h2>", f"<p>{escape(part.text)}</p>"]
        if part.plot in plots:
            lines.append(_image(part.title, plots[part.plot]))
            shown.add(part.plot)
        if part.rows:
            heading, *rows = part.rows
            lines.append(f"<table><thead>{_row(heading, 'th')}</thead><tbody>")
            lines += [_row(row, "td") for row in rows]
            lines.append("</tbody></table>")
    lines += [_image(name, picture) for name, picture in plots.items() if name not in shown]
    return "\n".join([*lines, "</body></html>", ""])


def _image(title: str, picture: bytes) -> str:
    return f'<img alt="{escape(title)}" src="data:image/svg+xml;base64,{b64encode(picture).decode()}">'


def _row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
