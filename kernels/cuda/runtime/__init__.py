"""Foundation of the CUDA kernels: compilation, driver, streams, memory, primitives, storage, records, simulator."""
