"""Encoders and their training: the towers, the data, the objective and the loop (`sparsight train`)."""
