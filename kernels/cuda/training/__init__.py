"""Training of a network on a GPU: the list of launches, CUDA graphs, the feed of data."""
