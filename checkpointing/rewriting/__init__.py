"""A plan carried out on the graph, simulated, and proved."""
