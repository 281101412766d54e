"""A run on disk: its name, its files, and what their state says."""
