"""The report's tables, in its order, each on the page and as files of numbers and of text.

write_listings(read_report_data(folders), Path("report/tables"), problems=[])

To add one, write its two functions and list it here.
"""

from pathlib import Path

from sweeps.report.listings.benchmarks import BENCHMARKS, TARGETS
from sweeps.report.listings.errors import ERRORS
from sweeps.report.listings.forward import FORWARD
from sweeps.report.listings.law import LAW
from sweeps.report.listings.listing import Listing
from sweeps.report.listings.memory import MEMORY
from sweeps.report.listings.models import MODELS
from sweeps.report.listings.phase_diagram import FORWARD_PARTS, PHASE_DIAGRAM
from sweeps.report.listings.steps.compiled_front import ADDED_TIME, BASELINES, PLANS
from sweeps.report.listings.steps.data_parallel import DATA_PARALLEL
from sweeps.report.listings.steps.largest_batch import LARGEST_BATCH
from sweeps.report.listings.steps.profiles import PROFILES
from sweeps.report.listings.steps.recomputation import RECOMPUTATION
from sweeps.report.listings.steps.traces import TRACES
from sweeps.report.listings.training_step import TRAINING_STEP
from sweeps.report.page.page_table import PageTable
from sweeps.report.problems import attempt
from sweeps.report.tables.report_data import ReportData

OF_STEPS = (BASELINES, ADDED_TIME, PLANS, DATA_PARALLEL, LARGEST_BATCH, RECOMPUTATION, PROFILES, TRACES)
LISTINGS = (
    FORWARD,
    TRAINING_STEP,
    MODELS,
    LAW,
    MEMORY,
    ERRORS,
    *OF_STEPS,
    PHASE_DIAGRAM,
    FORWARD_PARTS,
    TARGETS,
    BENCHMARKS,
)


def write_listings(data: ReportData, folder: Path, problems: list[str]) -> list[PageTable]:
    """The tables that have a row, with their files in `folder`; one that can't be made is a line of `problems`."""
    made = []
    for listing in LISTINGS:
        what = f"the table “{listing.title}”"
        made.append(attempt(problems, what, None, listing.write, data, folder))
    return [table for table in made if table]


__all__ = ["LISTINGS", "Listing", "write_listings"]
