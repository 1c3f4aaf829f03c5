"""Records: the arguments of a kernel, as fields of 64 bits that Python fills in and kernels read.

A field holds a number, the address of an array, or the address of code; 0 stands for "none". Its name must not be an
attribute of arrays, such as `size`: interpreted kernels read fields as attributes of NumPy's records.
"""

from __future__ import annotations

from functools import cache
from struct import Struct
from typing import Any

import numpy as np

from .frontend import intrinsic, types
from .primitives import INTERPRETED, address_of, view

PACKED = {"i": "q", "u": "Q", "f": "d"}  # letters of 64-bit numbers in `struct`, by NumPy's kind


def _record(*names: str, reals: tuple[str, ...] = (), words: tuple[str, ...] = ()) -> np.dtype[Any]:
    kinds = dict.fromkeys(names, "i8") | dict.fromkeys(reals, "f8") | dict.fromkeys(words, "u8")
    return np.dtype(list(kinds.items()))


# One pass over the data: the program, the rows, and words by which the ranks and the calling thread signal each other.
RUN = _record(
    "phases",  # (num_phases, 3): code of a phase, its work record, 1 if a barrier follows it
    "num_phases",
    "epoch_phases",  # the first phases, which run before the first batch of an epoch only
    "num_epochs",
    "epoch_stride",  # numbers from the first batch of an epoch to that of the next; 0: there is one epoch
    "num_batches",  # of an epoch
    "batch_size",  # rows of a full batch
    "num_rows",  # of an epoch
    "order",  # (num_rows,) their indices in x and y, uint32 or int64; 0: 0, 1, 2, ...
    "first_batch",  # batches done before the pass: dropout draws by their number
    "arrivals",  # at barriers, of all ranks, never reset
    "yield_cpu",  # code of sched_yield
    "done",  # number of the next batch, for the thread that watches
    "stop",  # set by the thread that watches: STOP_BATCH or STOP_EPOCH
    "halt",  # copy of `stop` that rank 0 makes and all ranks read after the batch's last barrier
    "marks",  # (num_ranks, num_marked, 1 + 2 num_phases, 2): times at which phases were done, if the run is profiled
    "num_marked",  # batches that have memory for marks
    "clock",  # code
    "epoch_ends",  # (num_epochs, 2): times at which epochs ended; 0: nobody asks
    "losses",  # (num_epochs, epoch_stride) float64: the pass ends with an epoch for which they are not finite; 0: it
    #   goes on
    "starts",  # (num_batches + 1,) the first row of each batch of the only epoch, and their sum; 0: batch_size each
    "judge",  # record JUDGE, 0: none; and the code that is called with it after each epoch
    "judge_code",
    "in_step",  # 1: the batches are pieces of one step, `first_batch`, and dropout draws by their rows in it
    "first_in_step",  # number of the pass's first row in the step
)
STOP_BATCH, STOP_EPOCH = 1, 2  # values of `stop`: end the pass with this batch, or with this epoch

# The rule by which losses end a pass: see training/judge.py.
JUDGE = _record(
    "run",
    "losses",  # (epochs, batches) float64
    "losses_of_row",
    "weights",  # (epochs, batches) float64 if `weighted`, else (batches,) of every epoch
    "weighted",
    "penalties",  # (epochs, batches) float64, of the batches that begin a step; 0: none
    "divisors",  # (steps of all epochs,) float64, of the penalties; 0: none
    "accumulate",  # batches of a step
    "steps",  # of an epoch
    "patience",  # and the other fields of LossRule, which change from epoch to epoch
    "waited",
    "of_all",
    reals=("best", "least", "margin"),  # margin: by which losses may differ by rounding
)

# A team of threads: see teams.py.
TEAM = _record(
    "kernel",  # code
    "work",
    "ended",  # number of ranks that have ended
    "yield_cpu",  # code
)

# A thread that runs ranks of teams.
WORKER = _record(
    "claims",  # 0: it waits for a rank; the team that gives it one adds 1, and so does the thread as it falls asleep
    "claims_before",  # the team's: 1 if the thread sleeps
    "team",  # record TEAM
    "rank",
    "num_ranks",
    "reports",  # 1: the thread goes back to Python after the rank
    "reported",  # 1: it has gone back so; 0: it has fallen asleep
    "member",  # code
)

# Programs that wait to be run, each by one rank: see queue.py.
QUEUE = _record(
    "programs",  # (count,) addresses of their records RUN
    "count",
    "run_program",  # code
    "taken",  # number of programs that a rank has begun, or count and more
    "ended",  # number of programs that have ended, for the thread that watches
    "stop",  # set by the thread that watches: none is begun
    "clock",  # code
    "times",  # (count, 2, 2): times at which each began and ended
)

# The order of the rows of an epoch, drawn from a seed.
SHUFFLE = _record(
    "run",
    "rows",  # (count,), which `order` of RUN rearranges, both of one dtype; an epoch takes the first num_rows of them
    "count",
    "first_epoch",
    "block_rows",  # rows of a block, and of a window, of `Shuffle`
    "window_rows",
    "blocks",  # memory for the numbers of all blocks, of the dtype of rows
    words=("seed",),
)

# A batch: its rows of x and y, and the memory that they are copied to.
GATHER = _record(
    "run",
    "x",  # (rows of the data, inputs); of sparse rows the stored values
    "y",  # (rows of the data,) int64 labels or (rows of the data, outputs); 0: none
    "batch_x",
    "batch_y",
    "inputs",
    "piece_cols",  # columns of x in a piece of work, and in batch_x, which has the columns of a piece together
    "capacity",  # rows of batch_x
    "outputs",  # columns of y
    "has_labels",
    "row_bytes",  # from row to row of x
    "element_bytes",  # from element to element of a row of x, where they need not be neighbours
    "stages",  # (stages, 2, inputs) float64: factor and term of each
    "sparse_columns",  # of the stored values of sparse rows
    "starts",  # (rows of the data + 1,): the first stored value of each sparse row
    "absent",  # (inputs,): values of x that are not stored, prepared
    "zero",  # of codes: batch_x is uint8, in rows of piece_cols bytes
    reals=("inverse",),  # of the scale of codes
)

DENSE = _record(
    "run",
    "x",  # (rows, inputs), or (num_splits, rows, split_rows): the columns of each split together
    "x_stride",  # elements from row to row of x
    "x_split",  # and from the columns of one split to those of the next
    "w",  # (inputs, outputs)
    "b",  # (outputs,)
    "z",  # (rows, outputs), pre-activation; the same array as y if the slope is a function of y
    "y",  # (rows, outputs)
    "dz",  # (rows, outputs) the gradient of y, then, in its place, that of z
    "dx",  # (rows, inputs)
    "dw",  # gradients, if they are written and not handed to the update at once
    "db",
    "inputs",
    "outputs",
    "tile_rows",  # of a tile of y
    "tile_cols",
    "dx_tile_rows",  # of a tile of dx
    "dx_tile_cols",
    "dw_tile_rows",  # of a tile of dw
    "dw_tile_cols",
    "num_splits",  # of the rows of w
    "split_rows",  # rows of w in a split; the last one may have fewer
    "split_products",  # (num_splits, rows, outputs), if there are several
    "gemm",  # code
    "activate",  # code: z, b -> y
    "slope",  # code: dz, y or z -> dz, column sums
    "col_sums",  # (tiles of rows, outputs) float64, of dz, made by the layer above; 0: by `slopes`
    "slope_below",  # code of the layer below, which makes dx its dz; 0: dx stays as it is
    "s_below",  # its y or z
    "col_sums_below",
    "update",  # code of the optimizer's rule; 0: gradients are written
    "w_states",  # (STATE_WORDS,) addresses and key
    "b_states",
    "w_scalars",  # (NUM_SCALARS + 1,) of the first step
    "b_scalars",
    "scalars_row_bytes",  # from the scalars of a step to those of the next
    "uses_y",  # 1: the slope is a function of y, 0: of z
    "alpha_beta",  # (batches, 2) float64, of dw = alpha x^T dz + beta dw; 0: 1 and 0
    "scratch",  # (num_ranks, scratch_bytes): a tile of dw, or column sums in float64 and db
    "scratch_bytes",
    "round_tile",  # code: rounds dx in place to the dtype that layers compute in; 0: it stays as it is
    "squares",  # code: the sum of squares of a tile of w, before its update; 0: nobody asks
    "square_sums",  # (tiles of w,) float64
    "magnitudes",  # code: the sum of magnitudes; 0: nobody asks
    "magnitude_sums",
    "lanes",  # (num_ranks, lane_bytes) of these kernels
    "lane_bytes",
    "measure",  # code: the squares of the columns of a tile of w, after its update; 0: nobody asks
    "column_squares",  # (rows of tiles of w, outputs) float64
    "mask_tile",  # code: gradients of pruned weights in a tile become 0; 0: they stay, for nobody adds them up
    "mask",  # (inputs, outputs) uint8: 0 where w is pruned
    "tree_tile",  # code: adds a tile of dw, of a piece of a step, to the sums that wait for it; 0: dw is written
    "tree",  # record TREE_SUM of dw
)

# A dense layer whose weights are mostly zero: see dense/sparse.py.
SPARSE = _record(
    "run",
    "w",  # (inputs, outputs)
    "b",  # (outputs,); 0: none
    "inputs",
    "outputs",
    "block",  # rows of w in a block, whose products are summed from zero
    "rows_x",  # (rows, inputs), to be packed
    "x",  # (strips, inputs, rows of a strip)
    "y",  # (strips, outputs, rows of a strip)
    "rows_y",  # (rows, outputs), to be unpacked
    "room",  # (chunks + 1,) int64: the first entry of each chunk of columns
    "entries",  # offsets of rows of x, and weights
    "starts",  # (chunks, blocks, pairs of a chunk + 1) int32: the first entries of each pair, from those of its chunk
    "places",  # (chunks * blocks + 1,) int64: in the next two, the first weight of each chunk and block
    "source",  # (weights left,) uint32: their elements of w
    "target",  # (weights left,) uint32: their entries, from those of their chunk
    "fits",  # (chunks,): 0 where weights are not zero that are not among them
    "scratch",  # (num_ranks, scratch_bytes)
    "scratch_bytes",
    "activate",  # code: y -> y, without a bias
)

# Rows of a batch as codes, and dense layers of codes: see dense/quantized.py.
CODES = _record(
    "run",
    "x",  # (rows, columns) float32
    "y",  # (rows, row_bytes) uint8
    "columns",
    "row_bytes",
    "zero",  # the code of 0
    reals=("inverse",),  # of the scale
)
INT8_DENSE = _record(
    "run",
    "x",  # (rows, x_row) uint8, with room for whole tiles
    "x_row",  # bytes of a row
    "w",  # packed codes
    "steps",  # words of a column of w
    "start",  # (groups GROUP,) int32, that the sums of columns start from
    "scale",  # (groups GROUP,) of sums
    "b",  # (outputs,)
    "y",  # (rows, outputs) float32, or uint8
    "y_row",  # bytes of a row
    "outputs",
    "activate",  # code: scaled sums, b -> y
    "coded",  # 1: y is codes
    "zero",  # of these
    "scratch",  # (num_ranks, SUMS_BYTES)
    reals=("inverse",),  # of the scale of the codes of y
)
CODED_WEIGHTS = _record(
    "run",
    "x",  # (rows, inputs)
    "codes",  # of w
    "scales",  # (groups, outputs)
    "group",  # rows of w of a scale
    "b",  # (outputs,)
    "y",  # (rows, outputs)
    "inputs",
    "outputs",
    "gemm",  # code
    "activate",  # code
    "scratch",  # (num_ranks, STRIP_BYTES)
)

# Numbers rounded to codes in training: see dense/fake_quantized.py.
FAKE_WEIGHTS = _record(
    "run",
    "w",  # (inputs, outputs)
    "y",  # the same, rounded
    "inputs",
    "outputs",
    "group",  # rows of a scale
    "most",  # the largest code
    "scratch",  # (num_ranks, FAKE_SCRATCH)
)
FAKE_INPUTS = _record(
    "run",
    "x",  # (splits, capacity, columns)
    "y",  # the same, rounded
    "splits",
    "capacity",
    "columns",
    "limits",  # (pieces of rows, 2): least and largest
    "scratch",  # (num_ranks, 2, columns)
)

DROPOUT = _record("run", "x", "y", "columns", "threshold", reals=("scale",), words=("stream",))

NOISE = _record("run", "x", "y", "columns", reals=("stddev",), words=("stream",))

# Normalization of columns (batch) or rows (layer): see dense/normalization.py.
NORMALIZATION = _record(
    "run",
    "x",  # (rows, columns)
    "y",
    "dy",  # (rows, columns) the gradient of y, then, in its place, that of x
    "needs_dx",  # 0: the gradient of x is not wanted
    "columns",
    "gamma",  # (columns,); 0: there is none, as of the next
    "beta",
    "moving_mean",  # (columns,)
    "moving_variance",
    "means",  # float64, of each column or row, and 1 / sqrt(variance + epsilon)
    "inverses",
    "weights",  # record WEIGHTS: steps whose weights sum to 0 move no averages; 0: rows have none
    "sums",  # (pieces of rows, 2, columns) float64: sums for the gradients of gamma and beta
    "dgamma",  # gradients, if they are written and not handed to the update at once
    "dbeta",
    "update_gamma",  # code of the optimizer's rule; 0: gradients are written, or not wanted
    "update_beta",
    "gamma_states",  # (STATE_WORDS,) addresses and key
    "beta_states",
    "gamma_scalars",  # (NUM_SCALARS + 1,) of the first step
    "beta_scalars",
    "scalars_row_bytes",  # from the scalars of a step to those of the next
    "alpha_beta",  # as in DENSE
    "scratch",  # (num_ranks, scratch_bytes)
    "scratch_bytes",
    reals=("epsilon", "momentum"),
)

LOSS = _record(
    "run", "z", "t", "dz", "columns",
    "sums",  # (pieces of rows,) float64
    "weights",  # record WEIGHTS; 0: rows have none
    reals=("param",),
)  # fmt: skip

METRIC = _record(
    "run", "z", "t",
    "columns",  # that count
    "stride",  # elements from row to row
    "sums",
    "weights",  # record WEIGHTS; 0: rows have none
    reals=("z_boundary", "t_boundary"),
)  # fmt: skip

ACTIVATE = _record("run", "z", "y", "columns", "activate")  # activate: code; 0: softmax

# slope: code: dz, s -> dz, column sums; scratch: (num_ranks, columns) float64
SLOPES = _record("run", "dz", "s", "columns", "slope", "scratch")

# columns of sums (pieces of rows, columns): into[step * stride + epoch * epoch_stride][column] += sum(sums[:, column])
TOTAL = _record("run", "sums", "columns", "into", "stride", "epoch_stride")  # strides in bytes

# Weights of rows: see row_weights.py.
WEIGHTS = _record(
    "run",
    "w",  # (num_weights,) of the rows of the data
    "num_weights",
    "batch_weights",  # (rows,) of the batch
    "batch_sums",  # (batches of all epochs,) float64
    "step_sums",  # (batches of all epochs,) float64: of the step that the batch is in
    "accumulate",  # batches of a step
)
WEIGHED = _record(
    "weights",  # record WEIGHTS
    "phase",  # code and record of another phase
    "phase_work",
    "otherwise",  # code of what takes its place, with its record, in steps whose weights sum to 0; 0: nothing
)

UPDATE = _record(
    "update",  # code
    "p",
    "g",
    *("state0", "state1", "state2", "state3"),
    "key",  # of stochastic rounding
    "scalars",  # their address, or bytes behind the address that all arrays have in common
    "elements",
    "first_tile",
    "element_bytes",  # bytes of an element of g
)
UPDATES = _record(
    "count",
    "table",  # (count,) of UPDATE
    "tiles",  # of all arrays
    "scalars",  # address that those of the arrays count from, in bytes
)

# A parameter that is partly pruned: see masked_loops.py.
MASKED = _record(
    "mask",  # (elements,) uint8: 0 where it is pruned
    "share",  # one number of the parameter's dtype, its share in its average; 0: there is no average
)

# The arguments of a step of a plan: see plan.py.
PLAN = _record(
    "count",
    "gradients",  # (count,) addresses; 0: the array is left out
    "steps",  # (count,) numbers
    "sizes",  # (count,) elements
    "kinds",  # (count,)
    "streams",  # (count,), from which the keys are made
    "table",  # (count,) of UPDATE
    "updates",  # one of UPDATES
    "scalars",  # (count, ROW) bytes
    "rows",  # (count, 2): the kind and the step number of each row of scalars in use
    "used",  # rows in use
    "elements",  # to be updated
)

# Gradients to check, and the addresses read from them: see arrays.py.
ARRAYS = _record(
    "count",
    "objects",  # (count,) addresses of Python's objects
    "header_bytes",  # of every Python object
    "ndarray",  # the type's address
    "expected",  # (count, 3): address of the dtype, number of axes (-1: none will do), address of the shape
    "owners",  # (num_owners,) addresses of arrays that must not be gradients, sorted
    "num_owners",
    "into",  # (count,): the address of each array's first element; -1 where it is not as expected
    "num_others",  # arrays that are not as expected
)

# Arrays of other libraries, read by their capsules or by the C exchange API: see dlpack.py.
FOREIGN = _record(
    "count",
    "objects",  # (count,) addresses of Python's objects
    "header_bytes",  # of every Python object
    "capsule_type",  # its address
    "old_name",
    "new_name",
    "exchange",  # code of the exchange API's function for objects of the next two types; 0: there is none
    "tensor_type",
    "parameter_type",
    "tensor",  # one DLTensor that the function fills
    "expected",  # (arrays, EXPECTED): dtype and axes, as DLPack packs them; addresses of shape and strides; 1 if
    #   strides may be missing; bytes of an element, and of all; the address that the array must have, or 0
    "rows",  # (count,): the row of `expected` for each object; 0: 0, 1, 2, ...
    "starts",  # (spans,), and `ends`: memory that no array may share
    "ends",
    "spans",
    "knows",  # 1: `into` has addresses that are known, and 0 for the others
    "into",  # (count,): then the address of each array, or -1
    "unfit",  # arrays without an address
)

# Numbers of steps that another library keeps: see counters.py.
COUNTERS = _record(
    "count",
    "counters",  # (count,) addresses; 0: the array has none
    "sizes",  # (count,): 4 for a float32, 8 for a float64
    "numbers",  # (count,): those of the step to come
    "gradients",  # (count,) addresses; 0: the array is left out
    "advances",  # 1: count the step
)

# The squares of arrays: see norm.py.
SQUARES = _record("squares", "x", "elements", "first_piece", "element_bytes")  # squares: code
SQUARES_ALL = _record(
    "count",
    "table",  # (count,) of SQUARES
    "num_pieces",
    "sums",  # (num_pieces,) float64
    "lanes",  # (num_ranks, LANES) float64
    "step_after",  # (batches,): 0 after batches whose squares are not needed; 0: all are
)

# The penalty of a batch: see penalties.py.
PENALTY_PART = _record(
    "sums",  # (pieces,) float64
    "pieces",
    reals=("factor",),  # of their sum
)
PENALTY = _record(
    "count",
    "parts",  # (count,) of PENALTY_PART
    "starts_step",  # (batches,): 0 for batches that have no penalty; 0: all have
    "into",  # (batches,) float64
)

# Updates of some rows of an array: see sparse_rows.py.
ROWS_SUM = _record(
    "values",  # (count, columns)
    "count",
    "columns",
    "order",  # (count,): the indices of the values, sorted by row
    "starts",  # (used + 1,): positions in `order` at which rows begin
    "used",  # rows
    "into",  # (used, columns)
    "room",  # (num_ranks, columns) float32, in which 16-bit values are added up; 0: in `into`
)
ROWS_UPDATE = _record(
    "update",  # code
    "p",
    "g",  # (used, columns)
    *("state0", "state1", "state2", "state3"),
    "key",  # of stochastic rounding
    "states",  # their number
    "scalars",
    "rows",  # (used,): indices of the rows of p, sorted
    "used",
    "columns",
    "element_bytes",  # bytes of an element of p and g
    "state_element_bytes",
)

# The update of all parameters from whole gradients: see optimizer_step.py.
APPLY = _record(
    "update_all",  # code
    "updates",  # (num_ranks,) of UPDATES
    "step_after",  # (batches,): the optimizer step, from 1, that follows a batch; 0: none
    "scalars",  # (steps, settings, NUM_SCALARS + 1)
    "scalars_row_bytes",  # of a step
    "num_settings",
    "clipped",  # (num_ranks, clipped_bytes): the scalars of a step, of a rank's own, with the factor of clipping
    "clipped_bytes",
    "sums",  # (num_pieces,) float64: squares of the gradients
    "num_pieces",
    reals=("max_norm",),  # the norm to clip to; 0: none
)

# Sums over the pieces of a step, and over arrays, in the order of a tree: see training/tree_sums.py.
TREE_SUM = _record(
    "gradient",  # (elements,) of a piece; the last piece leaves the sum here
    "levels",  # (num_levels,) addresses of arrays of as many elements: sums over 1, 2, 4 ... pieces that wait
    "num_levels",
    "elements",
    "first_piece",  # number of the piece of step 0
)
WIRE = _record("wide", "narrow", "elements")  # float32 values, and their bits in bfloat16: see training/wire.py
ADDITIONS = _record(
    "pairs",  # (count, 2) addresses of arrays of as many elements: the first of each becomes the sum of both
    "count",
    "elements",
)

# The share of the parameters in their averages, and constraints: see training/after_step.py.
SHARE = _record(
    "shares",  # (steps,) float64
    "cell",  # one number of the network's dtype, for the step
    "accumulate",  # batches of a step
)
CONSTRAINED = _record(
    "constrain",  # code
    "p",  # (rows, columns)
    "average",  # the same; 0: none
    "share",  # one number of p's dtype
    "rows",
    "columns",
    "piece",  # rows of a piece
    "pieces",
    "element_bytes",
    "measure",  # code: sums of the squares of a piece's columns; 0: there are no norms of columns
    "squares",  # (measured, columns) float64: what it leaves, or the phases `weights`
    "measured",
    reals=("most",),  # the largest norm
)
AFTER_STEP = _record(
    "count",
    "table",  # (count,) of CONSTRAINED
    "scratch",  # (num_ranks, scratch_bytes)
    "scratch_bytes",
    "step_after",  # (batches,): 0 after batches that end no step; 0: all do
)


def fill(dtype: np.dtype[Any], **values: Any) -> np.ndarray:
    """One record; arrays are given by their addresses. The caller keeps them alive."""
    packing, places = _packing(dtype)
    words = [0] * len(places)
    for name, value in values.items():
        words[places[name]] = address_of(value) if value is None or isinstance(value, np.ndarray) else value
    return np.ndarray(1, dtype, bytearray(packing.pack(*words)))


@cache
def _packing(dtype: np.dtype[Any]) -> tuple[Struct, dict[str, int]]:
    """Return what makes bytes of a record's values, faster than to assign them one by one, and their places by name."""
    assert dtype.fields is not None
    assert dtype.names is not None
    codes = [PACKED[dtype.fields[name][0].kind] for name in dtype.names]
    return Struct("=" + "".join(codes)), {name: i for i, name in enumerate(dtype.names)}


def words_of(record: np.ndarray) -> memoryview:
    """The words of one record, whose fields are integers, to be read and changed quickly; see `word_of`."""
    return memoryview(record.view(np.int64))  # type: ignore[arg-type]


def word_of(dtype: np.dtype[Any], name: str) -> int:
    """The index of a field among the words of a record."""
    return offset(dtype, name) // 8


def offset(dtype: np.dtype[Any], name: str) -> int:
    """The offset of a field in a record, in bytes."""
    assert dtype.fields is not None
    return dtype.fields[name][1]


@intrinsic
def _read(typingctx, address, dtype):
    from numba.core.typing.npydecl import parse_dtype

    record = parse_dtype(dtype)

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(record))

    return record(types.int64, dtype), codegen


def _read_python(address, dtype):
    return view(address, 1, dtype)[0]


read = _read_python if INTERPRETED else _read  # the record at an address, in a kernel; its fields are attributes
