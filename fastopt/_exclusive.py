"""Locks that keep threads from mixing their work on the same weights."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Exclusive:
    """A shared-exclusive lock, reentrant for the thread that holds it alone.

    Short calls wait for one another. During a call that trains, which may take hours, calls of other threads raise
    RuntimeError. A copy or unpickled lock is a new one, which no thread holds.

    `trainings` has one entry for each nested call that trains, the outermost first; all are of one thread.
    """

    def __init__(self) -> None:
        self.trainings: list[Any] = []
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._mutex = threading.Lock()
        self._changed = threading.Condition(self._mutex)
        self._owner: int | None = None
        self._depth = self._num_trainings = 0  # nested calls of the owner; those of them that train
        self._readers: dict[int, int] = {}
        self.trainings.clear()

    def __reduce__(self) -> tuple[type[Exclusive], tuple[()]]:
        return Exclusive, ()

    @contextmanager
    def exclusive(self, call: str, trains: bool = False) -> Iterator[None]:
        """Hold the lock exclusively; `call` is the name of the method for errors."""
        me = threading.get_ident()
        with self._lock():
            self._wait_for_owner(me, call)
            self._owner = me
            self._depth += 1
            self._num_trainings += trains
        try:
            with self._changed:
                while self._readers.keys() - {me}:
                    self._changed.wait()
            yield
        finally:
            with self._changed:
                self._num_trainings -= trains
                self._depth -= 1
                if not self._depth:
                    self._owner = None
                    self._changed.notify_all()

    @contextmanager
    def taken_over(self) -> Iterator[None]:
        """While open, this thread holds the lock in place of its owner, which waits until it is closed."""
        with self._changed:
            owner, self._owner = self._owner, threading.get_ident()
        try:
            yield
        finally:
            with self._changed:
                self._owner = owner

    def shared(self, call: str) -> _Shared:
        """Hold the lock together with other threads, while none holds it exclusively."""
        return _Shared(self, call)

    def _lock(self) -> threading.Condition:
        if self._process != os.getpid():  # a forked child has no other threads, and none of their locks
            self._reset()
        return self._changed

    def _wait_for_owner(self, me: int, call: str) -> None:
        while self._owner not in (None, me):
            if self._num_trainings:
                raise RuntimeError(
                    f"another thread is training this model: {call} would work on weights that are changing. Call it"
                    " when fit has returned, or in a callback; or train a copy of the model (copy.deepcopy)"
                )
            self._changed.wait()


class _Shared:
    """Context of `Exclusive.shared`: a class, as a generator would take twice the 1 us of its two short locks."""

    __slots__ = ("_call", "_lock", "_me")

    def __init__(self, lock: Exclusive, call: str) -> None:
        self._lock, self._call = lock, call

    def __enter__(self) -> None:
        lock, self._me = self._lock, threading.get_ident()
        lock._lock()
        with lock._mutex:
            if lock._owner is not None:
                lock._wait_for_owner(self._me, self._call)
            lock._readers[self._me] = lock._readers.get(self._me, 0) + 1

    def __exit__(self, *error: object) -> None:
        lock, me = self._lock, self._me
        with lock._mutex:
            lock._readers[me] -= 1
            if not lock._readers[me]:
                del lock._readers[me]
                if lock._owner is not None:  # nobody else waits for readers
                    lock._changed.notify_all()


_LOCK_OWNERS: weakref.WeakSet[Any] = weakref.WeakSet()


def add_step_lock(owner: Any) -> None:
    """Make `owner._step_lock`, a lock for steps; a forked child gets a new one.

    It is no `Exclusive`, which costs more than a short step.
    """
    owner._step_lock = threading.RLock()
    _LOCK_OWNERS.add(owner)


def _renew_locks() -> None:
    for owner in list(_LOCK_OWNERS):
        owner._step_lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


class Single:
    """Lock that admits one caller at a time: others, and the same one again, get an error instead of waiting.

    A copy or unpickled lock is a new one, which is free.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Single], tuple[()]]:
        return Single, ()

    @contextmanager
    def taken(self, refusal: str) -> Iterator[None]:
        """Hold the lock; if it is held already, raise RuntimeError(refusal)."""
        if not self._lock.acquire(blocking=False):
            raise RuntimeError(refusal)
        try:
            yield
        finally:
            self._lock.release()
