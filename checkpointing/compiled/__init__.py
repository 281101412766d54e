"""Recomputation under a memory budget inside torch.compile: what its two halves hold, and when."""
