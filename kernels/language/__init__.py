"""The language of users' formulas: a Python function of numbers, read into a graph and written out for each backend.

    source    the function's syntax tree, and errors that quote its line
    nodes     the graph: arithmetic on numbers of one type T, without literals of another type
    library   functions that a formula may call
    reading   from the syntax tree to the graph
    writing   from the graph to a scalar function for compilers, one of NumPy's arrays, and one of float64 for the host

A formula is read once and never called by a kernel. So all backends calculate the same operations in the same order,
literals take the type of the arguments, and the text that is written out is the whole formula: the names of kernels
have its digest, and so the cache of compiled code cannot mistake one formula for another.
"""
