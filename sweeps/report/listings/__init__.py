"""The report's tables, in its order, each on the page and as files of numbers and of text.

for listing in LISTINGS:
    table = listing.write(read_report_data(folders), Path("report/tables"))     # None where it is empty

To add one, write its two functions and list it here.
"""

from sweeps.report.listings.benchmarks import BENCHMARKS, TARGETS
from sweeps.report.listings.errors import ERRORS
from sweeps.report.listings.forward import FORWARD
from sweeps.report.listings.law import LAW
from sweeps.report.listings.listing import Listing
from sweeps.report.listings.memory import MEMORY
from sweeps.report.listings.profiles import PROFILES
from sweeps.report.listings.recomputation import RECOMPUTATION
from sweeps.report.listings.traces import TRACES
from sweeps.report.listings.training_step import TRAINING_STEP

LISTINGS = (FORWARD, TRAINING_STEP, LAW, MEMORY, ERRORS, RECOMPUTATION, PROFILES, TRACES, TARGETS, BENCHMARKS)

__all__ = ["LISTINGS", "Listing"]
