"""One job: its ranks, what each of them runs, and whether the result is right."""
