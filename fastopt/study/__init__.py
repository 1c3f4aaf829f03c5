"""Study of the size of networks against time and error: how large a model, how much data, how long will it take.

`study` trains a grid of models and returns a `StudyResult`: regressions of time, power laws of errors, and answers. It
needs SciPy, and matplotlib for the plots of its page: `pip install "fastopt[study]"`.
"""

from __future__ import annotations

from ._estimate import Estimate
from ._findings import Choice, Doubling
from ._law import PowerLaw
from ._result import StudyResult
from ._study import study
from ._time_model import TimeModel

__all__ = ["Choice", "Doubling", "Estimate", "PowerLaw", "StudyResult", "TimeModel", "study"]
