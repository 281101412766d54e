"""The gradient of an embedding, added to the rows that were looked up and to nothing else."""
