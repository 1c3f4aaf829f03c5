"""SearchResult: the trials of a search, the best of them, and a model of its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from .._task import FIT
from .._text import aligned
from ..models.sequential import Sequential
from ._optuna import optuna
from ._space import Space, label

SHOWN = 10  # trials of a table


class Outcome(NamedTuple):
    """A finished trial.

    score   mean over the folds; of a trial that was given up the last figure that it reported, or None
    scores  of each fold
    state   "complete" or "pruned"
    epochs  of a search with patience: number of the epoch whose figure is the score, of each fold
    """

    number: int
    score: float | None
    scores: tuple[float, ...]
    settings: dict[str, Any]
    state: str
    seconds: float
    epochs: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class SearchResult:
    """Result of `search`.

    study    Optuna's study, for its importances, plots and tables
    monitor  name of the figure that the score is
    space    the checked space
    build    function that makes a compiled model of settings
    fit_options  those of `search`, that settings do not have
    """

    study: Any
    monitor: str
    space: Space
    build: Any
    fit_options: Mapping[str, Any]

    @property
    def outcomes(self) -> list[Outcome]:
        """All finished trials, the best first; those that were given up stand last, in their order."""
        rising = self.study.direction == optuna.study.StudyDirection.MAXIMIZE
        states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        found = [self._outcome(trial) for trial in self.study.get_trials(deepcopy=False, states=states)]
        complete = [outcome for outcome in found if outcome.state == "complete"]
        complete.sort(key=lambda outcome: (outcome.score or 0.0) * (-1 if rising else 1))
        return complete + [outcome for outcome in found if outcome.state == "pruned"]

    def _outcome(self, trial: Any) -> Outcome:
        complete = trial.state == optuna.trial.TrialState.COMPLETE
        score = trial.value if complete else trial.intermediate_values.get(trial.last_step)
        seconds = trial.duration.total_seconds() if trial.duration is not None else 0.0
        scores = tuple(trial.user_attrs.get("scores", ()))
        settings = self.space.settings_of(trial.params)
        epochs = tuple(trial.user_attrs.get("epochs", ()))
        return Outcome(trial.number, score, scores, settings, trial.state.name.lower(), seconds, epochs)

    @property
    def best(self) -> Outcome:
        """The best trial; ValueError if none came to its end."""
        outcomes = self.outcomes
        if not outcomes or outcomes[0].state != "complete":
            raise ValueError(f"none of {_trials(outcomes)} came to its end: smaller learning rates may help")
        return outcomes[0]

    @property
    def best_settings(self) -> dict[str, Any]:
        """Settings of the best trial."""
        return self.best.settings

    @property
    def best_score(self) -> float:
        """Score of the best trial: the mean of `monitor` over the folds."""
        return float(self.best.score or 0.0)

    @property
    def best_epochs(self) -> int:
        """Epochs to train the best settings for: those of the search, or with patience their mean over the folds."""
        best = self.best
        if best.epochs:
            return round(sum(best.epochs) / len(best.epochs))
        return int(best.settings.get("epochs", self.fit_options["epochs"]))

    def fit(self, x: Any, y: Any, **options: Any) -> Sequential:
        """Return a new model of the best settings, trained on these rows for `best_epochs`.

        options: further ones of `Sequential.fit`, such as other epochs.
        """
        settings = self.best_settings
        model: Sequential = self.build(settings)
        chosen = {name: settings[name] for name in FIT if name in settings}
        model.fit(x, y, **{**self.fit_options, **chosen, "epochs": self.best_epochs, **options})
        return model

    def table(self, most: int = SHOWN) -> str:
        """The best trials as lines of text, with the settings that were searched."""
        outcomes = self.outcomes
        names = list(self.space.free)
        rows = [["trial", self.monitor, "+-", *names, "seconds"]]
        for outcome in outcomes[:most]:
            score = "-" if outcome.score is None else f"{outcome.score:.4g}"
            spread = f"{_deviation(outcome.scores):.2g}" if len(outcome.scores) > 1 else "-"
            settings = [_shown(outcome.settings[name]) if name in outcome.settings else "-" for name in names]
            end = f"{outcome.seconds:.2g}" if outcome.state == "complete" else "pruned"
            rows.append([str(outcome.number), score, spread, *settings, end])
        pruned = sum(outcome.state == "pruned" for outcome in outcomes)
        return f"{aligned(rows)}\n{_trials(outcomes)}, {pruned} of them pruned"

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return f"SearchResult({_trials(self.outcomes)} of {', '.join(self.space.free)})"


def _trials(outcomes: list[Outcome]) -> str:
    return f"{len(outcomes)} trial{'s' * (len(outcomes) != 1)}"


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(label(value))


def _deviation(values: tuple[float, ...]) -> float:
    """Standard deviation of a sample."""
    mean = sum(values) / len(values)
    return float((sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5)
