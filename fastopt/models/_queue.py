"""Trainings of many models at the same time: compiled calls together, or a Python thread each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import Any

from .. import _backends
from ..kernels.interrupts import interrupts_held
from ..kernels.spec import Batches, EpochHooks
from . import epoch_loop, training
from .history import History
from .training import Plan

# Bytes of the numbers that passes of a round keep beside their networks: orders of rows, and rates and losses of steps.
ROUND_BYTES = 256 << 20
LOOK = 0.05  # seconds between two looks at threads
Show = Callable[[int], None]  # given the number of models that are trained


class Training:
    """A model with the checked plan of its training, which nobody else trains meanwhile."""

    def __init__(self, model: Any, plan: Plan) -> None:
        self.model, self.plan = model, plan
        self.history = History(plan.batch_size, plan.batch_size_reason)

    def run(self) -> None:
        """Train the model alone."""
        run = training.run_at_once if self.plan.at_once else epoch_loop.run
        self.history = run(self.model, self.plan)

    def calls(self) -> Iterator[tuple[Batches, EpochHooks]]:
        """The calls of the backend that the training comes to, as `calls_at_once`; `model.history` has its figures."""
        with training.in_training(self.model, (), self.history):
            yield from training.calls_at_once(self.model, self.plan, self.history)


def run(trainings: Sequence[Training], show: Show | None) -> None:
    """Train all models: those that one compiled call can train by it, then by threads, then one after the other."""
    ways: dict[str, list[Training]] = {"together": [], "threads": [], "alone": []}
    for this in trainings:
        has_threads = hasattr(_backends.get(this.model.backend), "run_passes")
        together = this.plan.at_once and not this.plan.options.callbacks
        ways["alone" if not has_threads else "together" if together else "threads"].append(this)
    done = 0

    def shown(more: int) -> None:
        if show:
            show(done + more)

    if ways["together"]:
        _run_together(ways["together"], shown)
        done += len(ways["together"])
    if ways["threads"]:
        _run_on_threads(ways["threads"], shown)
        done += len(ways["threads"])
    for this in ways["alone"]:
        this.run()
        done += 1
        shown(0)


# ---------------------------------------------------------------- compiled calls together


class _Call:
    """A call of the backend that a training waits for."""

    def __init__(self, this: Training) -> None:
        self.training, self._calls = this, this.calls()
        self.batches: Batches
        self.hooks: EpochHooks

    def find(self) -> bool:
        """Find the next call; False: the training is done."""
        found = next(self._calls, None)
        if found is not None:
            self.batches, self.hooks = found
        return found is not None

    def close(self) -> None:
        """End the training, early or not."""
        self._calls.close()  # type: ignore[attr-defined]

    @property
    def is_last(self) -> bool:
        plan = self.training.plan
        return len(self.training.history.epochs) + self.batches.epochs >= len(plan.options.epoch_numbers)


def _run_together(trainings: Sequence[Training], show: Show) -> None:
    """Run the calls of all trainings in rounds, each one queue of the backend: most trainings are a single call."""
    calls, done = [_Call(this) for this in trainings], 0
    try:
        waiting = [call for call in calls if call.find()]
        done = len(calls) - len(waiting)
        while waiting:
            begun = _run_round(waiting, lambda more, before=done: show(before + more))  # type: ignore[misc]
            more = [call for call in waiting[:begun] if call.find()]
            done += begun - len(more)
            waiting = more + waiting[begun:]
            show(done)
    finally:
        for call in calls:
            call.close()


def _run_round(calls: Sequence[_Call], show: Show) -> int:
    """Run the first calls, as many as have room in memory, in one queue; return their number."""
    kernels, passes, num_bytes = _backends.get(calls[0].training.model.backend), [], 0
    with ExitStack() as stack, interrupts_held() as check:
        try:
            for call in calls:
                model, network = call.training.model, call.training.plan.network
                stack.enter_context(model.optimizer._step_lock)
                steps = training.next_steps(model, network, call.batches)
                passes.append(network.prepare(call.batches, steps, model.seed, call.hooks))
                num_bytes += passes[-1].num_bytes
                if num_bytes > ROUND_BYTES:
                    break

            def watch() -> None:
                check()
                show(sum(this.is_whole and call.is_last for call, this in zip(calls, passes, strict=False)))

            kernels.run_passes(passes, watch)
        finally:
            for call, this in zip(calls, passes, strict=False):
                call.training.plan.network.finish(this)
                training.count_steps(call.training.model, call.training.plan.network)
    return len(passes)


# ---------------------------------------------------------------- a thread each


def _run_on_threads(trainings: Sequence[Training], show: Show) -> None:
    """Train each model by a Python thread, whose kernels use no other thread: they release the GIL."""
    kernels = _backends.get(trainings[0].model.backend)
    over = threading.Event()

    def work(this: Training) -> None:
        if not over.is_set():
            with this.model._use.taken_over(), kernels.on_one_thread():
                this.run()

    with ThreadPoolExecutor(min(len(trainings), kernels.get_num_threads()), "fastopt-fit") as pool:
        try:
            futures = [pool.submit(work, this) for this in trainings]
            left: set[Future[None]] = set(futures)
            while left:
                ended, left = wait(left, LOOK, FIRST_EXCEPTION)
                for future in ended:
                    future.result()
                show(len(futures) - len(left))
        except BaseException:
            with interrupts_held():
                over.set()
                while left:
                    for this in trainings:
                        this.model.stop_training = True  # anew: a training begins by setting it to False
                    _, left = wait(left, LOOK)
            raise
