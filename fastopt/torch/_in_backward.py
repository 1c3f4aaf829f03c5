"""Updates inside torch's backward pass: each parameter as soon as its gradient is complete."""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from ._step import Accelerated, update_some

# Gradients that are smaller wait for others, so that a hundred small arrays are one launch and not a hundred: one takes
# 10 us. The update of as many bytes takes some 0.4 ms, so that a launch of its own no longer shows.
WAITING_BYTES = 4 * 2**20

MOST_PASSES = 32  # of those that may have ended that are looked through
_queue_callback: Any = torch.autograd.Variable._execution_engine.queue_callback  # type: ignore[attr-defined]
_task_id = torch._C._current_graph_task_id  # of the backward pass that this thread works on; -1: of none


class _Pass:
    """A backward pass: its number, and the parameters that wait for an update."""

    __slots__ = ("__weakref__", "params", "streams", "task", "waiting_bytes")

    def __init__(self, task: int) -> None:
        self.task = task
        self.params: list[torch.Tensor] = []
        self.streams: set[Any] = set()  # of GPUs, on which their gradients were computed
        self.waiting_bytes = 0


class _Hooks:
    """The hooks of parameters, called by autograd when a gradient is complete.

    They own neither the handle nor a pass: the garbage collector does not see the hooks of a tensor, so that
    parameters, optimizer and handle would never be freed.
    """

    def __init__(self, handle: StepInBackward) -> None:
        self.handle = weakref.ref(handle)
        self.current: Callable[[], _Pass | None] = lambda: None  # the pass of the last call
        self.removable: dict[int, Any] = {}  # by the id of their parameter

    def add(self, p: torch.Tensor, is_tiny: bool) -> None:
        """Hook a parameter; is_tiny: on the CPU, and the gradients of all that are tiny may wait together."""
        hook = self.wait if is_tiny else self.take
        self.removable[id(p)] = p.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def remove(self) -> None:
        for removable in self.removable.values():
            removable.remove()
        self.removable.clear()

    def wait(self, p: torch.Tensor) -> None:
        """Let a tiny parameter wait for others, without a lock and without counting: 0.2 us instead of 0.6."""
        current = self.current()
        if current is None or current.task != _task_id():
            self.take(p)
        else:
            current.params.append(p)

    def take(self, p: torch.Tensor) -> None:
        """Let a parameter wait, or update it, and those that wait."""
        handle = self.handle()
        if handle is None:
            self.remove()
            raise RuntimeError(
                "the optimizer of step_in_backward no longer exists, and its updates end here: keep it as long as its"
                " parameters are trained, or call remove() of the handle"
            )
        handle.take(p)


class StepInBackward:
    """Handle of `step_in_backward`: updates are done in backward passes until `remove` is called.

    It is a context manager, too, which removes itself at the end.

    Attributes:
        optimizer: the optimizer whose parameters are updated.
    """

    def __init__(self, optimizer: Accelerated) -> None:
        self.optimizer = optimizer
        self._lock = threading.RLock()  # autograd has a thread for each GPU
        self._hooks = _Hooks(self)
        self._passes: dict[int, weakref.ref[_Pass]] = {}  # by number, those that have not ended, and some that have
        self._frozen: list[torch.Tensor] = []  # parameters without a hook
        self._updated: set[int] = set()  # ids of parameters updated since the last call of `step`
        self._twice = self._calls_step = False
        self._scaling = optimizer.__dict__.get("_step_supports_amp_scaling")

    def attach(self) -> None:
        """Have the parameters call when their gradients are complete, those that do not do so yet."""
        self._frozen.clear()
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        for p in params:
            if not p.requires_grad:
                self._frozen.append(p)
            elif id(p) not in self._hooks.removable:
                self._hooks.add(p, p.is_cpu and p.nbytes * len(params) <= WAITING_BYTES)
        self.optimizer._in_backward = self
        # Else a GradScaler would raise an AssertionError of its own, without the reason.
        self.optimizer._step_supports_amp_scaling = True  # type: ignore[attr-defined]

    def remove(self) -> None:
        """Leave updates to `optimizer.step` again; call it between backward passes. A second call changes nothing."""
        self._hooks.remove()
        if self.optimizer.__dict__.get("_in_backward") is self:
            del self.optimizer._in_backward
            if self._scaling is None:
                del self.optimizer._step_supports_amp_scaling  # type: ignore[attr-defined]
            else:
                self.optimizer._step_supports_amp_scaling = self._scaling  # type: ignore[attr-defined]

    def __enter__(self) -> StepInBackward:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    # ------------------------------------------------------------ inside a backward pass
    def take(self, p: torch.Tensor) -> None:
        """Update a parameter whose gradient is complete, now or with others."""
        task = _task_id()
        with self._lock:
            current = self._hooks.current()
            if current is None or current.task != task:
                current = self._begin(task)
            current.params.append(p)
            if p.is_cuda:
                current.streams.add(torch.cuda.current_stream(p.device))
            current.waiting_bytes += p.nbytes
            if current.waiting_bytes >= WAITING_BYTES or task == -1:
                self._update(current)

    def _begin(self, task: int) -> _Pass:
        """The backward pass of this number: one that has just begun, or, where passes are nested, one that goes on."""
        if task == -1:  # a hook that is not called by the engine
            return _Pass(task)
        known = self._passes.get(task)
        current = None if known is None else known()
        if current is None:
            refuse_processes()
            # The engine owns the pass through its callback, so that nothing stays of a pass that an error has ended.
            current = _Pass(task)
            _queue_callback(partial(self.end, current))
            if len(self._passes) >= MOST_PASSES:
                self._passes = {number: known for number, known in self._passes.items() if known() is not None}
            known = self._passes[task] = weakref.ref(current)
        self._hooks.current = known  # type: ignore[assignment]
        return current

    def end(self, current: _Pass) -> None:
        """Called by autograd at the end of a backward pass."""
        with self._lock:
            if self._frozen and any(p.requires_grad for p in self._frozen):  # no longer frozen
                current.params += [p for p in self._frozen if p.requires_grad]
                self.attach()
            self._update(current)

    def _update(self, current: _Pass) -> None:
        """Update the parameters that wait, and free their gradients."""
        waiting, streams = current.params, current.streams
        current.params, current.streams, current.waiting_bytes = [], set(), 0
        params = [p for p in waiting if p.grad is not None]
        if not params:
            return
        ids = set(map(id, params))
        if not self._updated.isdisjoint(ids):
            if self._calls_step:
                raise RuntimeError(_ACCUMULATED)
            self._twice = True
        if streams:
            _join(streams, params)
        update_some(self.optimizer, params, ids)
        self._updated |= ids
        for p in params:
            p.grad = None
        self.optimizer._opt_called = True  # type: ignore[attr-defined]  # for schedulers, which warn without

    # ------------------------------------------------------------ after it
    def end_step(self) -> None:
        """Called by `optimizer.step`, which then updates the parameters that still have gradients.

        Raises RuntimeError if there was more than one backward pass since the last call, or a GradScaler calls.
        """
        state: Any = vars(self.optimizer)
        twice, self._twice = self._twice, False
        self._calls_step = self._calls_step or bool(self._updated)
        self._updated.clear()
        if "grad_scale" in state or "found_inf" in state:
            state.pop("grad_scale", None)  # the scaler deletes them after a step only
            state.pop("found_inf", None)
            raise RuntimeError(_SCALED)
        if twice:
            raise RuntimeError(_ACCUMULATED)


_ACCUMULATED = (
    "step_in_backward updates parameters in every backward pass, so gradients must not be accumulated over several; got"
    " more than one backward pass of a parameter before optimizer.step(): call step() after each, or never"
)
_SCALED = (
    "step_in_backward must not be used with a GradScaler: the loss is scaled, and parameters have been updated by"
    " gradients that are too large by its scale, before the scaler could look for inf in them; train in bfloat16, which"
    " needs no scaler"
)


def refuse_processes() -> None:
    """Raise RuntimeError if gradients are averaged over processes, which is done after a parameter's hook."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        raise RuntimeError(
            "step_in_backward must be used in one process: DistributedDataParallel averages gradients over processes"
            f" after they are complete in each; got {distributed.get_world_size()} processes"
        )


def _join(streams: set[Any], params: list[torch.Tensor]) -> None:
    """Let the current streams of GPUs wait for those on which gradients were computed, and keep the gradients' memory
    until the update has read them."""
    for stream in streams:
        current = torch.cuda.current_stream(stream.device)
        if stream != current:
            current.wait_stream(stream)
            for p in params:
                if p.device == stream.device and p.grad is not None:
                    p.grad.record_stream(current)


def make_handle(optimizer: Any, classes: Mapping[type, type[Accelerated]]) -> StepInBackward:
    """The handle of step_in_backward, attached; see fastopt.torch.step_in_backward."""
    if not isinstance(optimizer, Accelerated):
        name = f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
        advice = " (fastopt.torch.accelerate converts it)" if type(optimizer) in classes else ""
        raise TypeError(f"optimizer must be one of fastopt.torch's; got {name}{advice}")
    base = next(cls for cls in classes.values() if isinstance(optimizer, cls))
    if inspect.unwrap(type(optimizer).step) is not inspect.unwrap(Accelerated.step):
        raise TypeError(
            f"optimizer must have the step of fastopt.torch.{base.__name__}; got {type(optimizer).__qualname__}, whose"
            " own step would not be called in a backward pass"
        )
    if optimizer._in_backward is not None:
        raise ValueError("optimizer must not have its steps in backward already; got one with a handle: remove() it")
    if optimizer.clip_norm is not None:
        raise ValueError(
            f"optimizer.clip_norm must be None; got {optimizer.clip_norm}: the norm of all gradients is known when the"
            " last one is, and by then the first are gone"
        )
    for group in optimizer.param_groups:
        if group.get("differentiable"):
            raise ValueError("differentiable must be False; got True: such a step cannot be inside a backward pass")
        for p in group["params"]:
            hooks: Mapping[int, Any] = getattr(p, "_post_accumulate_grad_hooks", None) or {}
            owners = (getattr(hook, "__self__", None) for hook in hooks.values())
            if any(isinstance(owner, _Hooks) and owner.handle() is not None for owner in owners):
                raise ValueError("a parameter must be updated by one optimizer; got one that another updates already")
    refuse_processes()
    handle = StepInBackward(optimizer)
    handle.attach()
    return handle
