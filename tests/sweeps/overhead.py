"""What a sweep costs beside its jobs: N trivial jobs by the local launcher, and the same by hand one after another.

    python tests/sweeps/overhead.py 100

Half of the jobs by hand run before the sweep and half after, so that a machine that grows slower harms both alike.
"""

import subprocess
import sys
import tempfile
import time

JOB = ["phase=phase0_correctness", "method=dense_single", "hardware=cpu", "model.B=8"]
BLOCKSHOCK = [sys.executable, "-m", "blockshock"]


def timed(arguments: list[str], folder: str) -> float:
    start = time.perf_counter()
    subprocess.run([*BLOCKSHOCK, *arguments], cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    sizes = [str(4 * n) for n in range(1, count + 1)]
    with tempfile.TemporaryDirectory() as folder:
        by_hand = sum(timed([*JOB, f"model.N={n}"], folder) for n in sizes[: count // 2])
        sweep = timed(["-m", *JOB, f"model.N={','.join(sizes)}", "hydra.launcher.report=false"], folder)
        by_hand += sum(timed([*JOB, f"model.N={n}"], folder) for n in sizes[count // 2 :])
    print(f"{count} jobs: {by_hand:.1f} s by hand, {sweep:.1f} s as a sweep: {sweep / by_hand:.2f} times as long")


if __name__ == "__main__":
    main()
