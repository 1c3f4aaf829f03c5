"""SciPy, or the error that says how to get it."""

from __future__ import annotations

try:
    from scipy.optimize import least_squares
    from scipy.stats import t as student_t
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"fastopt.study needs SciPy: pip install 'fastopt[study]' ({error})", name=error.name
    ) from error

__all__ = ["least_squares", "student_t"]
