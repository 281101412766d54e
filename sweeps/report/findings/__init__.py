"""What a report opens with: on each subject that was measured one sentence, and a few numbers behind it.

for finding in findings(read_report_data(folders), problems=[]):
    print(finding.sentence)

To add one, write a function `find(ReportData) -> Finding | None` and list it here.
"""

from sweeps.report.findings import (
    benchmarks,
    compiled_front,
    data_parallel,
    largest_batch,
    layers,
    phase_diagram,
    profiles,
    recomputation,
    traces,
)
from sweeps.report.findings.finding import Finding
from sweeps.report.problems import attempt
from sweeps.report.tables.report_data import ReportData

FINDINGS = {
    "layers": layers.find,
    "benchmarks": benchmarks.find,
    "the phase diagram": phase_diagram.find,
    "data parallelism": data_parallel.find,
    "compiled training": compiled_front.find,
    "the largest batch": largest_batch.find,
    "recomputation": recomputation.find,
    "profiles": profiles.find,
    "traces": traces.find,
}


def findings(data: ReportData, problems: list[str]) -> list[Finding]:
    """Those that the records allow; one that can't be made is a line of `problems`."""
    made = [attempt(problems, f"the finding on {name}", None, find, data) for name, find in FINDINGS.items()]
    return [finding for finding in made if finding]


__all__ = ["FINDINGS", "Finding", "findings"]
