"""Benchmarks: how near the product, the collective, the forward pass and the training step come to what is possible.

    python -m blockshock.bench --parts product,backward                       # one GPU: the rank-local product
    python -m blockshock.bench --parts all_reduce,forward,train --ranks 2     # with collectives, beside the peers

What is compared takes turns in one run, as CUDA graphs on random data with the L2 cache cold; ratios of medians count.
Every result is checked against float64 before it is timed. The folder is a run folder (metrics.jsonl, env.json,
status.json), so `blockshock-report` and `sweeps.load_runs` read it.
"""
