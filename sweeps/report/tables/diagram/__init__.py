"""The forward's model over the sizes: where families of splits break even, and each forward next to its own parts."""
