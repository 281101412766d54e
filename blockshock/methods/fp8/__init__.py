"""Methods whose matmuls are in fp8: fewer bits per weight, more error."""
