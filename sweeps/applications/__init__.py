"""Whose jobs a launcher runs: any Hydra application's, or Block-Shock's own, which have more to say."""
