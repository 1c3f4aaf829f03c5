"""Commands of `fastopt`: each module has `add`, which adds the command's parser, and `run`, which runs the command.

Modules that need Numba are imported inside functions, so that `fastopt --help` answers at once.
"""
