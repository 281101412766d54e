"""One training step as one graph, and what every node of it costs in time and memory."""

from profiler.tracing import trace_train_step
