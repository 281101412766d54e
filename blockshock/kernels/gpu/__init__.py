"""Device code: Triton and CUDA kernels, how they are compiled, and which tiles they use."""
