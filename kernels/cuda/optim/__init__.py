"""Updates of arrays on a GPU: the kernels of the rules, the plan of a step, norms, steps counted by the device."""
