"""Packing jobs onto GPUs: invariants for any jobs, and how busy GPUs are when durations are random (simulated)."""

import heapq
import itertools
import random
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from sweeps.applications.application import HydraApplication
from sweeps.launchers.local import LocalLauncherConf, LocalRunner
from sweeps.launchers.machine.gpu_placement import GpuClaims, Machine, choose, share_of_cores, side_by_side
from sweeps.launchers.sweep.compose import Needs, PlannedJob
from tests.launching import ROOT

demands = st.lists(st.integers(0, 9), max_size=12)
gpus = st.sets(st.integers(0, 7))


@given(demands, gpus)
def test_the_widest_job_that_fits_starts_on_free_gpus_of_its_own(demands, free):
    chosen = choose(demands, free)
    fitting = [demand for demand in demands if demand <= len(free)]
    if chosen is None:
        assert not fitting
        return
    index, places = chosen
    assert demands[index] == max(fitting)
    assert demands.index(max(fitting)) == index  # the first of its width: order is kept
    assert len(set(places)) == demands[index]
    assert set(places) <= free


@given(gpus, st.integers(1, 8))
def test_no_other_choice_of_gpus_lies_closer_together(free, count):
    if count > len(free):
        return
    places = side_by_side(free, count)
    spread = max(places) - min(places)
    for first in free:
        reachable = [gpu for gpu in free if first <= gpu < first + spread]
        assert len(reachable) < count  # every narrower window holds too few


@given(st.integers(1, 64), st.integers(1, 8), st.data())
def test_cores_are_shared_out_without_overlap(cores, places, data):
    all_cores = list(range(cores))
    cut = data.draw(st.integers(1, places))
    first = share_of_cores(all_cores, range(cut), places)
    second = share_of_cores(all_cores, range(cut, places), places)
    if cores < places:
        assert first == second == tuple(all_cores)
    else:
        assert sorted(first + second) == all_cores
        assert len(first) >= cut


@given(
    st.lists(st.tuples(st.sampled_from([1, 2, 4, 8]), st.floats(0.1, 100)), min_size=20, max_size=150),
    st.randoms(use_true_random=False),
)
def test_eight_gpus_are_busy_nine_tenths_of_the_time_while_enough_jobs_wait(jobs, order):
    """Enough: what waits could fill the machine. No GPU is ever shared, and every job runs once."""
    order.shuffle(jobs)
    busy, total, runs = simulate(jobs, gpus=8)
    assert sorted(runs) == list(range(len(jobs)))
    assert busy >= 0.9 * total


def test_a_sweep_of_random_sizes_is_packed_at_nine_tenths_on_average():
    """Sizes that do not double (3, 5, 6 of 8) leave gaps that nothing fits; uniformly mixed sizes still pack well."""
    draw = random.Random(0)
    shares = []
    for _ in range(50):
        jobs = [(draw.randint(1, 8), draw.uniform(1, 100)) for _ in range(200)]
        busy, total, _ = simulate(jobs, gpus=8)
        shares.append(busy / total)
    assert sum(shares) / len(shares) >= 0.9


def simulate(jobs: list[tuple[int, float]], gpus: int) -> tuple[float, float, list[int]]:
    """Run (width, seconds) jobs in simulated time. (busy GPU-seconds and all GPU-seconds while what waits could fill
    the machine, the jobs in the order of their start)."""
    waiting = list(range(len(jobs)))
    free = set(range(gpus))
    ends: list[tuple[float, int, tuple[int, ...]]] = []
    now = busy = total = 0.0
    runs: list[int] = []
    while waiting or ends:
        while (chosen := choose([jobs[i][0] for i in waiting], free)) is not None:
            index, places = chosen
            assert set(places) <= free
            free -= set(places)
            job = waiting.pop(index)
            runs.append(job)
            heapq.heappush(ends, (now + jobs[job][1], job, places))
        end, _, places = heapq.heappop(ends)
        if sum(jobs[i][0] for i in waiting) >= gpus:
            busy += (gpus - len(free)) * (end - now)
            total += gpus * (end - now)
        now = end
        free |= set(places)
    return busy, total, runs


HOLDS = """
import sys
from pathlib import Path
from sweeps.launchers.machine.gpu_placement import GpuClaims
claims = GpuClaims(lambda gpu: f"GPU-{gpu}", Path(sys.argv[1]))
assert claims.claim(["0", "1"])
print("held", flush=True)
sys.stdin.read()
"""


def test_two_launchers_never_choose_the_same_gpu_and_a_killed_one_gives_its_own_back(tmp_path):
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    other = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    claims = GpuClaims(lambda gpu: f"GPU-{gpu}", tmp_path)
    assert not claims.claim(["2", "1"])
    assert claims.claim(["2"])  # nothing of the claim that failed is left
    other.kill()
    other.communicate()
    assert claims.claim(["0", "1"])
    claims.release(["0", "1", "2"])


def test_jobs_share_ranks_where_they_need_and_are_given_the_same():
    runner = LocalRunner(LocalLauncherConf(reuse_ranks=True), None, None)
    runner.machine = Machine([], [0])
    jobs = [planned_job(ranks, given) for ranks in (1, 2) for given in ({}, {"A": "1"}, {}, {"A": "${hydra:job.num}"})]
    jobs += [planned_job(2, {"A": "${hydra:job.num}"})]
    batches = runner._batches(jobs)
    assert sorted(len(batch) for batch in batches) == [1, 1, 1, 1, 1, 2, 2]
    assert [[job.needs.ranks for job in batch] for batch in batches if len(batch) == 2] == [[1, 1], [2, 2]]


numbers = itertools.count()


def planned_job(ranks: int, environment: dict[str, str]) -> PlannedJob:
    config = OmegaConf.create({"hydra": {"job": {"env_set": environment}}})
    needs = Needs(ranks, 0, None, None, None)
    return PlannedJob(next(numbers), [], config, {}, None, needs, HydraApplication())
