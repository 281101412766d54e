"""The report's figures, in its order. Each selects from what was measured and draws from its selection alone.

for plot in FIGURES:
    data = plot.select(measured)        # also what the report links to as the figure's data
    if not data.empty:
        figure = plot.draw(data)

To add one, write the two functions and list it here.
"""

from sweeps.figures.accuracy import DRIFT, ERRORS
from sweeps.figures.benchmark_times import BENCHMARK_ALL_REDUCE, BENCHMARK_HOST, BENCHMARK_LAW
from sweeps.figures.benchmarks import BENCHMARK_MAPS
from sweeps.figures.collectives import ALLREDUCE
from sweeps.figures.law import LAW
from sweeps.figures.plot import Measured, Plot
from sweeps.figures.recomputation import RECOMPUTATION_FIGURES
from sweeps.figures.roofline import FLOOR
from sweeps.figures.scaling import SCALING, SPEEDUP_OVER_DENSE, SPEEDUP_OVER_ROW, STEP_SCALING
from sweeps.figures.speed import THROUGHPUT
from sweeps.figures.training import TRAINING_STEP

BENCHMARK_FIGURES = (*BENCHMARK_MAPS, BENCHMARK_ALL_REDUCE, BENCHMARK_LAW, BENCHMARK_HOST)
FIGURES = (
    THROUGHPUT,
    SPEEDUP_OVER_DENSE,
    SPEEDUP_OVER_ROW,
    TRAINING_STEP,
    SCALING,
    STEP_SCALING,
    LAW,
    FLOOR,
    ALLREDUCE,
    ERRORS,
    DRIFT,
    *RECOMPUTATION_FIGURES,
    *BENCHMARK_FIGURES,
)

__all__ = ["BENCHMARK_FIGURES", "FIGURES", "Measured", "Plot"]
