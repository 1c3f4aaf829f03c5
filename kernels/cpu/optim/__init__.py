"""Updates of arrays: loops of the rules, the plan of a step, gradients of other libraries, norms, sparse rows."""
