"""Training steps of whole models: compiled, recomputed, and how large a batch fits."""
