"""Memory and time of a model's step with and without recomputation: compiled steps first."""

from sweeps.report.figures.recomputation.compiled_front import COMPILED_FRONT
from sweeps.report.figures.recomputation.largest_batch import LARGEST_BATCH
from sweeps.report.figures.recomputation.methods import METHOD_FIGURES

RECOMPUTATION_FIGURES = (COMPILED_FRONT, LARGEST_BATCH, *METHOD_FIGURES)

__all__ = ["RECOMPUTATION_FIGURES"]
