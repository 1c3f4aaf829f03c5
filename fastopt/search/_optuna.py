"""Optuna and scikit-learn, or the error that says how to get them."""

from __future__ import annotations

try:
    import optuna
    import sklearn as _sklearn  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"fastopt.search needs Optuna and scikit-learn: pip install 'fastopt[search]' ({error})", name=error.name
    ) from error

__all__ = ["optuna"]
