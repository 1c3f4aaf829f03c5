"""Training of a network: the list of phases and the compiled loop that runs it."""
