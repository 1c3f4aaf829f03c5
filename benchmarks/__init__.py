"""Benchmarks: suites that time the kernels against the reference, the machine's limits and other libraries."""
