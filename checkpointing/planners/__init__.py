"""The question, the planners that answer it, and the lower bound on any answer."""
