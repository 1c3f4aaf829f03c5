"""Matrix products by cuBLASLt and the kernels around them: epilogues, losses, dropout, gathering of batches."""
