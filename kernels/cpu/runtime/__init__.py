"""Foundation of the CPU kernels: compilation, primitives, threads, vector functions, storage, records."""
