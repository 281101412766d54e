"""What may run twice, and with which result: randomness, hidden writes, cheaper second runs."""
