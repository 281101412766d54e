"""A memory budget for torch.compile: a backend that plans what to keep and what to recompute."""
