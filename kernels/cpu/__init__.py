"""The CPU backend: Numba kernels, the vendor's GEMM, threads. The verbs are those of `fastopt.kernels.reference`."""

from .compile import compiling
from .dense import dense_backward, dense_forward
from .network import Network
from .rows import activate, loss
from .update import update

__all__ = ["Network", "activate", "compiling", "dense_backward", "dense_forward", "loss", "update"]
