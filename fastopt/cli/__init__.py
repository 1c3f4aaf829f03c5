"""The commands of `fastopt`: each module has `add`, which adds its parser, and `run`, which takes what that parsed.

What needs Numba is imported where it is used, so that `fastopt --help` is there at once.
"""
