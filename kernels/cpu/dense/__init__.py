"""Matrix products and row-wise phases: dense layers, losses, dropout, gathering of batches."""
