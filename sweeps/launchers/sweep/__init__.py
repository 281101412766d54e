"""One sweep: its jobs composed and checked, its own file, and what a user sees of it."""
