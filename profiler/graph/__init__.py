"""One training step as one FX graph."""
