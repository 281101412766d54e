"""The ranks of a job: those that torchrun or srun started, or processes started here.

with RankPool(world_size=2) as pool:
    outcomes = pool.run(task, argument)        # task(rank: RankInfo, argument) runs on every rank
"""

from blockshock.ranks.forking import start_forking_server
from blockshock.ranks.launched import RankInfo, forget_launch, from_first_launched, launched, share_run_id
from blockshock.ranks.pool import RankPool

__all__ = [
    "RankInfo",
    "RankPool",
    "forget_launch",
    "from_first_launched",
    "launched",
    "share_run_id",
    "start_forking_server",
]
