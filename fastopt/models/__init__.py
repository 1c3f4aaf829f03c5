"""Networks and their training: `Sequential`, the epochs of `fit`, files, progress, and users' data made ready."""
