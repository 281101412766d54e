"""What each node of a graph costs in time and memory, and the files and checks of those numbers."""
