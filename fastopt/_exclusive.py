"""One thread at a time: what keeps the weights of a model from being a mixture of two threads' work."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Exclusive:
    """Lets threads read together, or one of them change things alone; the thread that does may enter again.

    Short calls wait for one another. Beside a call that trains, which may take hours, those of other threads raise
    RuntimeError. A copy, or what comes out of a pickle, is a new one, in which no thread is.

    `trainings` has what each of the calls that train is about, the outermost first; they are of one thread.
    """

    def __init__(self) -> None:
        self.trainings: list[Any] = []
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._changed = threading.Condition(threading.Lock())
        self._owner: int | None = None
        self._depth = self._long = 0  # calls of the owner; those of them that train
        self._readers: dict[int, int] = {}
        self.trainings.clear()

    def __reduce__(self) -> tuple[type[Exclusive], tuple[()]]:
        return Exclusive, ()

    @contextmanager
    def alone(self, call: str, trains: bool = False) -> Iterator[None]:
        """While open, no other thread is in; `call` is what an error says of it."""
        me = threading.get_ident()
        with self._lock():
            self._wait_for_owner(me, call)
            self._owner = me
            self._depth += 1
            self._long += trains
        try:
            with self._changed:
                while any(reader != me for reader in self._readers):
                    self._changed.wait()
            yield
        finally:
            with self._changed:
                self._long -= trains
                self._depth -= 1
                if not self._depth:
                    self._owner = None
                    self._changed.notify_all()

    @contextmanager
    def shared(self, call: str) -> Iterator[None]:
        """While open, no other thread is in alone."""
        me = threading.get_ident()
        with self._lock():
            self._wait_for_owner(me, call)
            self._readers[me] = self._readers.get(me, 0) + 1
        try:
            yield
        finally:
            with self._changed:
                self._readers[me] -= 1
                if not self._readers[me]:
                    del self._readers[me]
                    self._changed.notify_all()

    def _lock(self) -> threading.Condition:
        if self._process != os.getpid():  # in a child, other threads are gone, and what they held with them
            self._reset()
        return self._changed

    def _wait_for_owner(self, me: int, call: str) -> None:
        while self._owner not in (None, me):
            if self._long:
                raise RuntimeError(
                    f"another thread is training this model: {call} would work on weights that are changing. Call it"
                    " when fit has returned, or in a callback; or train a copy of the model (copy.deepcopy)"
                )
            self._changed.wait()


_LOCK_OWNERS: weakref.WeakSet[Any] = weakref.WeakSet()


def add_step_lock(owner: Any) -> None:
    """Make `owner._step_lock`, which threads hold one after the other; a forked child gets a new one.

    A lock, and not an `Exclusive`, since a step of an optimizer may take no more than microseconds.
    """
    owner._step_lock = threading.RLock()
    _LOCK_OWNERS.add(owner)


def _renew_locks() -> None:
    for owner in list(_LOCK_OWNERS):
        owner._step_lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


class Single:
    """A place for one: `taken` is open to one caller at a time, in whatever thread, and not even to that one twice.

    A copy, or what comes out of a pickle, is a new one, which is free.
    """

    def __init__(self) -> None:
        self._free = threading.Lock()

    def __reduce__(self) -> tuple[type[Single], tuple[()]]:
        return Single, ()

    @contextmanager
    def taken(self, refusal: str) -> Iterator[None]:
        """While open, others get a RuntimeError that says the refusal."""
        if not self._free.acquire(blocking=False):
            raise RuntimeError(refusal)
        try:
            yield
        finally:
            self._free.release()
