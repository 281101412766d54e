"""The peak of a compiled step: of the generated code, of the allocator's blocks, and of what is there besides."""
