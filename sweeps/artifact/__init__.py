"""The numbers of README and docs as claims that anyone can check: docs/claims.yaml, and the command for it."""
