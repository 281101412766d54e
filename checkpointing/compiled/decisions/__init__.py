"""Who decides what a compiled step recomputes: this process, rank 0 of several, or a file."""
