"""Methods for weights that a mask has pruned, and for no others."""
