"""What the step reaches of the user's objects while it is traced: tensors, Python state, random numbers, conditions."""
