"""Suites for a GPU: `fastopt bench --backend cuda`. Under Numba's simulator they run tiny, to see that it works."""
