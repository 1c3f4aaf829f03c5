"""A study in values of JSON."""

from __future__ import annotations

from typing import Any

from ._findings import Findings
from ._law import PowerLaw


def findings_as_json(result: Findings) -> dict[str, Any]:
    """Grid, settings, models, times, laws and answers."""
    time, double = result.time, result.twice_the_data()
    return {
        "data": result.header,
        "machine": result.machine,
        "grid": {name: list(getattr(result.grid, name)) for name in result.grid.__dataclass_fields__},
        "models": [
            {
                **point._asdict(),
                "parameters": result.shape.parameters(point.layers),
                "bytes": result.shape.bytes(point.layers),
            }
            for point in result.points
        ],
        "time": {
            "terms": [{"name": term.name, **term.coefficient._asdict()} for term in time.terms],
            "r2": time.r2,
            "errors_of_sizes_held_out": {str(size): errors for size, errors in time.held_out.items()},
        },
        "laws": {
            name: None if law is None else _law(law)
            for name, law in (
                ("parameters", result.law_of_parameters),
                ("rows", result.law_of_rows),
                ("parameters_and_rows", result.law),
            )
        },
        "constant_error": result.constant_error,
        "verdicts": [
            {"layers": point.layers, "rows": point.rows, "kind": judged.kind, "reason": judged.reason}
            for point, judged in result.verdicts
        ],
        "frontier": [{**choice._asdict(), "seconds": choice.seconds._asdict()} for choice in result.frontier],
        "twice_the_data": None if double is None else {
            name: value._asdict() if hasattr(value, "_asdict") else value for name, value in double._asdict().items()
        },
    }  # fmt: skip


def _law(law: PowerLaw) -> dict[str, Any]:
    return {
        "floor": law.floor._asdict(),
        "scales": dict(zip(law.names, law.scales, strict=True)),
        "exponents": {name: value._asdict() for name, value in zip(law.names, law.exponents, strict=True)},
        "r2": law.r2,
        "falls": dict(zip(law.names, law.falls, strict=True)),
    }
