"""Many jobs: composed and checked first, then run on this machine's GPUs or on a SLURM cluster.

`launch.py` is what both launchers share, from the list of overrides to the report; `local.py` and `slurm.py` each say
how jobs are run and nothing else. Hydra finds the two through hydra_plugins/, which names their options.
"""
