"""Run folders and packed experiments, read and checked."""
