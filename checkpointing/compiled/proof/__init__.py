"""The proof that a step compiled under a budget is the step compiled without one."""
