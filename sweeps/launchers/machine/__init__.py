"""This machine: whose its GPUs and cores are, and the processes that run jobs on it."""
