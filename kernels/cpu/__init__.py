"""The CPU backend: Numba kernels, a GEMM, threads. The verbs are those of `fastopt.kernels.reference`."""

from collections.abc import Iterable

from ..formulas import ACTIVATIONS, LOSSES, OPTIMIZERS
from ..spec import FORMS
from .dense.blas import products
from .dense.fake_quantized import FAKE_INPUTS_KERNEL, FAKE_LIMITS_KERNEL, FAKE_WEIGHTS_KERNEL
from .dense.gather import Layout, gather_kernel
from .dense.layer import (
    DENSE_PHASES,
    activate_kernel,
    dense_backward,
    dense_forward,
    dense_kernel,
    round_kernel,
    slope_kernel,
)
from .dense.losses import TOTAL_KERNEL, activate, activate_rows_kernel, loss, loss_kernel
from .dense.matmul_bfloat16 import bfloat16_refusal
from .dense.metrics import metric_kernels
from .dense.normalization import NORMALIZATIONS, normalization_kernel
from .dense.quantized import quantized_kernels
from .dense.row_weights import weights_kernels
from .dense.rows import ROW_PHASES, rows_kernel
from .dense.slopes import slope_rows_kernel
from .dense.sparse import SPARSE_PHASES, sparse_kernel
from .optim.arrays import READ_ARRAYS, ArrayPlan
from .optim.counters import COUNT_STEPS
from .optim.dlpack import READ_FOREIGN, ForeignReader
from .optim.masked_loops import mask_tile_kernel
from .optim.norm import MAGNITUDES_OF, SQUARES_KERNEL, gradient_norm, squares_kernel
from .optim.plan import ASSIGN_SCALAR_ROWS, Plan, update
from .optim.sparse_rows import SORT_ROWS, UPDATE_ROWS, sum_rows, sum_rows_kernel, update_rows
from .optim.updates import UPDATE_ALL, update_kernel
from .runtime.compile import ENTER, Kernel, compiling
from .runtime.launch import LAUNCH, get_num_threads, on_one_thread, on_threads, threading_layer
from .runtime.openmp import BODY
from .runtime.storage import STORES
from .runtime.teams import CLAIM, MEMBER, SERVE
from .training.after_step import AFTER_STEP_KERNEL, MEASURE_KERNEL, after_step_kernels
from .training.flat_updates import FlatUpdates
from .training.judge import JUDGE_KERNEL
from .training.network import Network
from .training.optimizer_step import apply_kernel
from .training.penalties import PENALTY_KERNEL
from .training.pieces import Draws, Pieces
from .training.queue import RUN_QUEUE, run_passes
from .training.run import FINISH, MARKED_PROGRAM, RUN_PROGRAM
from .training.shuffle import shuffle_kernel
from .training.tree_sums import Additions, additions_kernel, tree_sum_kernel, tree_tile_kernel
from .training.wire import NARROW_KERNEL, WIDEN_KERNEL, narrow, widen

__all__ = [
    "Additions",
    "ArrayPlan",
    "Draws",
    "FlatUpdates",
    "ForeignReader",
    "Network",
    "Pieces",
    "Plan",
    "activate",
    "all_kernels",
    "bfloat16_refusal",
    "compiling",
    "dense_backward",
    "dense_forward",
    "get_num_threads",
    "gradient_norm",
    "loss",
    "narrow",
    "on_one_thread",
    "on_threads",
    "products",
    "run_passes",
    "sum_rows",
    "update",
    "update_rows",
    "widen",
]

ROW_NUMBERS = "uint32"  # their dtype where all fit
ON_TILES = activate_kernel, slope_kernel  # of an activation


def all_kernels(dtypes: Iterable[str] = tuple(STORES)) -> list[Kernel]:
    """Every kernel of the tables; asking for the `address` of one loads or compiles it."""
    kernels = [ENTER, BODY, ASSIGN_SCALAR_ROWS, READ_ARRAYS, READ_FOREIGN, COUNT_STEPS, UPDATE_ALL, SQUARES_KERNEL]
    kernels += [RUN_PROGRAM, MARKED_PROGRAM, RUN_QUEUE, TOTAL_KERNEL, FINISH, JUDGE_KERNEL, SORT_ROWS, UPDATE_ROWS]
    kernels += [NARROW_KERNEL, WIDEN_KERNEL, MEMBER, SERVE, CLAIM]
    kernels += [shuffle_kernel(ROW_NUMBERS, False), PENALTY_KERNEL, AFTER_STEP_KERNEL, MEASURE_KERNEL]
    if threading_layer() != "none":  # without one nothing can be launched, nor compiled for it
        kernels.append(LAUNCH)
    for dtype in dtypes:
        kernels += [squares_kernel(dtype), sum_rows_kernel(dtype)]
        if STORES[dtype].itemsize == 2:  # which are updated, and nothing else
            rows = OPTIMIZERS.values()
            kernels += [update_kernel(row.rule, len(row.states), dtype, form) for row in rows for form in FORMS]
            if dtype == "bfloat16" and not bfloat16_refusal():  # layers of float32 models may compute in it
                kernels += [make(name, dtype) for name in ACTIVATIONS for make in ON_TILES]
                kernels.append(gather_kernel(Layout("float32"), dtype, ROW_NUMBERS))
                kernels += [rows_kernel(phase, dtype) for phase in ("dropout", "noise")]
                kernels += [normalization_kernel(phase, dtype) for phase in NORMALIZATIONS]
                kernels += [round_kernel(dtype), *products(dtype).kernels("float32")]
            continue
        rows, sizes = OPTIMIZERS.values(), (False, True)
        kernels += [update_kernel(row.rule, len(row.states), dtype, streamed=s) for row in rows for s in sizes]
        kernels += [tree_sum_kernel(dtype), tree_tile_kernel(dtype), additions_kernel(dtype)]
        kernels += [apply_kernel(dtype), squares_kernel(dtype, MAGNITUDES_OF), *after_step_kernels(dtype)]
        kernels += [make(name, dtype) for name in ACTIVATIONS for make in ON_TILES]
        kernels += [dense_kernel(phase, dtype) for phase in DENSE_PHASES]
        kernels.append(gather_kernel(Layout(dtype), dtype, ROW_NUMBERS))
        kernels += [rows_kernel(phase, dtype) for phase in ROW_PHASES]
        kernels += [normalization_kernel(phase, dtype) for phase in NORMALIZATIONS]
        kernels += [activate_rows_kernel(dtype), slope_rows_kernel(dtype)]
        kernels += [loss_kernel(name, dtype, weighted) for name in LOSSES for weighted in (False, True)]
        kernels += [kernel for weighted in (False, True) for kernel in metric_kernels(dtype, weighted)]
        kernels += weights_kernels(dtype, ROW_NUMBERS)
        kernels += products(dtype).kernels(dtype)
        kernels += [mask_tile_kernel(dtype), *(sparse_kernel(phase, dtype) for phase in SPARSE_PHASES)]
        if dtype == "float32":
            kernels += quantized_kernels(ROW_NUMBERS)
            kernels += [FAKE_WEIGHTS_KERNEL, FAKE_LIMITS_KERNEL, FAKE_INPUTS_KERNEL]
    return list(dict.fromkeys(kernels))
