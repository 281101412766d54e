"""One kernel for a chunk of logits: the softmax's statistics of each row, and the gradient in the logits' place."""
