"""What runs while a step is recorded: collectors, hooks on modules, the allocator's snapshot, the peak rate."""
