"""The loss of a language model in chunks of rows, so that its logits are never there all at once."""
