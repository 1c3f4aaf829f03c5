"""Findings of a study in sentences."""

from __future__ import annotations

from .._text import rounded
from ._estimate import Estimate
from ._findings import Choice, Doubling, Findings
from ._law import PowerLaw
from ._summary import counted
from ._time_model import LARGE

UNITS = ((60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "us"))  # seconds in each


def sentences(result: Findings) -> list[str]:
    """Sentences on time, error, under- and overfitting, and more data."""
    found = [*time_words(result), *error_words(result), *fit_words(result)]
    if result.diverged:
        found.append(f"{result.diverged} of {result.models} models diverged, and are left out.")
    return found


def time_words(result: Findings) -> list[str]:
    """The regression of times, and its error on sizes that it has not seen."""
    model = result.time
    terms = " + ".join(
        f"{term.coefficient.value:.3g}" + (f" x {term.name}" if term.name != "fit" else "") for term in model.terms
    ).replace("+ -", "- ")
    typical = 100 * sorted(abs(model.errors))[len(model.errors) // 2]
    sentences = [f"Time: seconds = {terms}; R2 {model.r2:.4f}, median error {typical:.2g} %."]
    worst = model.worst_held_out()
    if worst is not None:
        sentences.append(
            f"Sizes of {LARGE:,} parameters and more that are held out are predicted within {100 * worst:.2g} %."
        )
    return sentences


def error_words(result: Findings) -> list[str]:
    """The laws, the best model, and twice the data."""
    best = result.best_point
    sentences = [
        f"Best: {result.shape.name(best.layers)} on {best.rows:,} rows, {counted(best.epochs)}, with a test error of"
        f" {result.shown_error(best.test_error)}."
    ]
    sentences += [
        law_words(result, law, subject)
        for law, subject in (
            (result.law_of_parameters, "Error against parameters"),
            (result.law_of_rows, f"Error of {result.shape.name(best.layers)} against rows"),
        )
        if law is not None
    ]
    double = result.twice_the_data()
    if double is not None:
        sentences.append(
            f"Twice the data: the error would {doubling_words(result, double)}, the time of a training go from"
            f" {seconds_words(double.seconds)} to {seconds_words(double.seconds_after)}."
        )
    return sentences


def doubling_words(result: Findings, double: Doubling) -> str:
    """The error before and after, with the interval of its fall; or that it stays, where none is to be seen."""
    before, after = (result.shown_error(error.value) for error in (double.error, double.error_after))
    law = result.law_of_rows
    if before == after or (law is not None and not any(law.falls)):
        return f"stay at {before}"
    low, high = sorted((100 * (1 - double.ratio.low), 100 * (1 - double.ratio.high)))
    return f"go from {before} to {after} (less by {low:.2g} to {high:.2g} %)"


def law_words(result: Findings, law: PowerLaw, subject: str) -> str:
    """A law with its intervals; or that there is none to be seen."""
    if not any(law.falls):
        return f"{subject}: it does not fall as they become more."
    floor = [result.shown_error(value) for value in law.floor]
    exponent = law.exponents[0]
    return (
        f"{subject}: {law}; floor {floor[0]} ({floor[1]} to {floor[2]}), exponent {exponent.value:.2g}"
        f" ({exponent.low:.2g} to {exponent.high:.2g}), R2 {law.r2:.2f}."
    )


def fit_words(result: Findings) -> list[str]:
    """Under- and overfitting of each size on all rows."""
    most = result.grid.rows(result.rows)[-1]
    own = [(point, judged) for point, judged in result.verdicts if point.rows == most]
    words = {"unfinished": "is not trained to its end"}
    return [
        f"{result.shape.name(point.layers)} {words.get(judged.kind, judged.kind)}: {judged.reason}."
        for point, judged in own
    ]


def seconds_words(seconds: Estimate, interval: bool = False) -> str:
    """A time in a unit that fits, and its interval in the same one.

    >>> seconds_words(Estimate(0.0605, 0.0, 0.155), interval=True)
    '60.5 ms (0 to 155)'
    """
    size, unit = next((found for found in UNITS if seconds.value >= found[0]), UNITS[-1])
    value, low, high = (rounded(part / size) for part in seconds)
    return f"{value} {unit} ({low} to {high})" if interval else f"{value} {unit}"


def choice_words(result: Findings, choice: Choice | None, budget: str) -> str:
    """The answer to a budget."""
    if choice is None:
        return f"Best for {budget}: none of the models of the grid."
    return (
        f"Best for {budget}: {result.shape.name(choice.layers)} on {choice.rows:,} rows, {counted(choice.epochs)} in"
        f" batches of {choice.batch_size}: test error {result.shown_error(choice.error)}, {choice.parameters:,}"
        f" parameters, {choice.bytes:,} bytes, about {seconds_words(choice.seconds)} of training."
    )


def prediction_words(result: Findings, layers: tuple[int, ...]) -> str:
    """Time of a model on all rows for the most epochs, and its error where there is a law of it."""
    seconds = result.seconds(layers)
    sentence = (
        f"{result.shape.name(layers)}: {result.shape.parameters(layers):,} parameters;"
        f" {counted(result.grid.epochs[-1])} of {result.rows:,} rows take {seconds_words(seconds, interval=True)}"
    )
    if result.law is None:
        return f"{sentence}."
    error = [result.shown_error(value) for value in result.error(layers)]
    return f"{sentence}, and leave a test error of {error[0]} ({error[1]} to {error[2]})."
