"""Numbers: what is compared, intervals, verdicts, the law, targets."""
