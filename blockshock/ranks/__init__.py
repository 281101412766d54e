"""The ranks of a job: those that torchrun or srun started, or processes started here.

with RankPool(world_size=2) as pool:
    outcomes = pool.run(task, argument)        # task(rank: RankInfo, argument) runs on every rank
"""

from blockshock.ranks.launched import RankInfo, launched, share_run_id
from blockshock.ranks.pool import RankPool, start_forking_server

__all__ = ["RankInfo", "RankPool", "launched", "share_run_id", "start_forking_server"]
