"""Many jobs: composed and checked first, then run on this machine's GPUs or on a SLURM cluster.

`launchers.py` lists the launchers, one file each (`local.py`, `slurm.py`): their options and how jobs are run.
`launch.py` is what they share, from the list of overrides to the report. Hydra finds them through hydra_plugins/.
"""
