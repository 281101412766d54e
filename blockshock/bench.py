"""`python -m blockshock.bench OVERRIDES`, which benchmarks once had for themselves: runs a sweep of phase=benchmark."""

import sys

from blockshock.cli.main import main

if __name__ == "__main__":
    if any(argument.startswith("--") for argument in sys.argv[1:]):
        print(
            "blockshock.bench: takes overrides, and no options of its own any more; for example "
            "blockshock -m +sweep=benchmark_layers model.N=4096 (benchmark_matmul, benchmark_all_reduce)",
            file=sys.stderr,
        )
        sys.exit(2)
    sys.argv[1:1] = ["-m", "+sweep=benchmark_matmul"]
    main()
