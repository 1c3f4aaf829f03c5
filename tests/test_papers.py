"""The READMEs: examples run and print what they show, links and files exist, figures are those of a kept run."""

import re
from pathlib import Path

import pytest

from fastopt.cli import main

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAPERS = [
    path
    for folder in ("fastopt", "kernels", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.md"))
    if "results" not in path.parts
]
OUTPUT = r"(?:\n\n^```text(?P<times> times)?\n(?P<shown>.*?)^```$)?"
EXAMPLE = re.compile(r"^```python\n(?P<code>.*?)^```$" + OUTPUT, re.M | re.S)
ROWS = 12


def names(path):
    return str(path.relative_to(ROOT))


def first_words(text):
    """Names of the rows of a table whose numbers are times."""
    return [line.partition("  ")[0] for line in re.sub(r"[\d.]+", "0", text).splitlines()[1:-1]]


@pytest.mark.slow
@pytest.mark.parametrize("path", [README, *PAPERS], ids=names)
def test_examples(path, tmp_path, monkeypatch, capsys):
    """The python blocks run one after the other in one namespace, as a reader types them; "..." matches anything."""
    needed = {"torch": "torch", "distributed": "mpi4py", "sklearn": "sklearn", "search": "optuna", "study": "scipy"}
    if path.parent.name in needed:
        pytest.importorskip(needed[path.parent.name])
    monkeypatch.chdir(tmp_path)
    text = path.read_text(encoding="utf-8")
    namespace = {"__name__": "__main__"}
    blocks = list(EXAMPLE.finditer(text))
    if path == README:
        assert len(blocks) == 3
        assert all(block["shown"] for block in blocks)
    for block in blocks:
        lines_before = text.count("\n", 0, block.start("code"))
        capsys.readouterr()
        exec(compile("\n" * lines_before + block["code"], path, "exec"), namespace)
        printed, shown = capsys.readouterr().out, block["shown"]
        if block["times"]:
            assert first_words(printed) == first_words(shown)
        elif shown is not None:
            pattern = ".*?".join(re.escape(part) for part in shown.split("..."))
            assert re.fullmatch(pattern, printed), printed


@pytest.mark.parametrize("path", [README, *PAPERS, ROOT / "CONTRIBUTING.md"], ids=names)
def test_links_and_files_exist(path):
    text = path.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if not link.startswith("http")]
    assert [link for link in links if not (path.parent / link).exists()] == []
    files = set(re.findall(r"`((?:fastopt|kernels|tests|benchmarks|cpu|cuda)/[\w/.]+)`", text))
    roots = (ROOT, ROOT / "kernels", path.parent)
    assert [name for name in sorted(files) if not any((root / name).exists() for root in roots)] == []


def test_the_readme_shows_what_was_measured(capsys):
    """Every line of the table is one of the report on the runs that are kept, side by side."""
    text, results = README.read_text(encoding="utf-8"), README.parent / "benchmarks" / "results"
    (picture,) = re.findall(r"^!\[.*\]\((benchmarks/results/.*\.svg)\)$", text, re.MULTILINE)
    assert (README.parent / picture).is_file()
    kept = [str(path) for path in sorted(results.glob("cpu-*.json"))]
    assert main.main(["report", *kept, "--side-by-side"]) == 0
    reported = capsys.readouterr().out.splitlines()
    _, heading, table = text.partition("| work | against | ")
    rows = [line for line in (heading + table.partition("\n\n")[0]).splitlines() if line.startswith("| ")]
    assert len(rows[0].split(" | ")) == 2 + len(kept)  # a column for each processor
    assert ROWS / 2 < len(rows) - 2 <= ROWS
    assert [row for row in rows if row not in reported and not set(row) <= set("| -")] == []


def test_the_readme_has_a_section_for_each_use():
    """Its sections fit on a screen: at most 40 lines each."""
    sections = re.split(r"^## ", README.read_text(encoding="utf-8"), flags=re.M)[1:]
    uses = {title: body.strip().count("\n") for title, _, body in (section.partition("\n") for section in sections)}
    assert {title: lines for title, lines in uses.items() if lines > 40} == {}
    assert {"Use it as an optimizer", "Train a network", "Measure it", "What runs where"} <= set(uses)
