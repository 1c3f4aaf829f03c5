"""A small network as one kernel of one block."""
