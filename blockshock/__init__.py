"""Block-Shock: measure, truthfully, ways of running one training step. Start with `blockshock --help`."""

__version__ = "0.1.0"
SCHEMA = 2  # of status.json and of a line of metrics.jsonl; 1: the configuration's hash held import paths
