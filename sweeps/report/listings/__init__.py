"""The report's tables, each on the page and as files of numbers and of text.

listings(read_report_data(folders), Path("report/tables"))
"""

from pathlib import Path

from sweeps.report.listings.benchmarks import benchmark_table, target_table
from sweeps.report.listings.layers import topics
from sweeps.report.listings.listing import text_lists, write_table
from sweeps.report.listings.recomputation import recomputation_table
from sweeps.report.page.page import Listing
from sweeps.report.tables.report_data import ReportData


def listings(data: ReportData, folder: Path) -> list[Listing]:
    """Every table of the page, written as CSV (numbers) and Markdown (text) as well."""
    made = []
    for topic in topics(data.table, data.law):
        files = write_table(folder / topic.name, topic.shown, text_lists(topic.numbers))
        made.append(Listing(topic.name, topic.title, topic.note, topic.shown, files))
    if not data.recomputed.empty:
        shown = recomputation_table(data.recomputed)
        files = write_table(folder / "recomputation", shown, data.recomputed)
        note = "Of each setting, method and memory budget. Predicted: by the plan's cost model. LP: the linear "
        note += "program's lower bound on the time that any plan within the budget adds. Same numbers: the rewritten "
        note += "step's loss, gradients and states against the plain step's."
        made.append(Listing("recomputation", "Recomputation", note, shown, files))
    if not data.profiles.empty:
        files = write_table(folder / "profiles", data.profiles)
        note = "The simulated peak comes from the step's graph and its nodes' workspaces, the measured one from the "
        note += "allocator. The sum of the nodes' times belongs beside the step as a CUDA graph, which has no gaps "
        note += "between kernels; with the idle time it belongs beside the eager step."
        made.append(Listing("profiles", "Profiled training steps", note, data.profiles, files))
    if not data.traces.empty:
        files = write_table(folder / "traces", data.traces)
        note = (
            "Medians over the traced steps, of the rank with the longest. Forward to idle add up to the step. Slower "
        )
        note += "by: what tracing added to it. With an owner: the share of device time that belongs to a module, the "
        note += "loss, the optimizer or a collective."
        made.append(Listing("traces", "Traced training steps", note, data.traces, files))
    if not data.targets.empty:
        shown = target_table(data.targets)
        files = write_table(folder / "targets", shown, data.targets)
        note = "Ratios of medians of what took turns in one run. Shares of cells, and how many times as long as ours "
        note += "torch_semi_structured takes, shall reach the limit; all other ratios shall stay below it."
        made.append(Listing("targets", "Benchmarks: targets", note, shown, files))
    if not data.benchmarks.empty:
        shown = benchmark_table(data.benchmarks)
        files = write_table(folder / "benchmarks", shown, text_lists(data.benchmarks))
        note = "Times are medians; as CUDA graphs, on GPUs, with the L2 cache cold, and eager with the host's part and "
        note += "a warm cache. Ratio: over the baseline's time in the same run; of single rounds: its smallest and "
        note += "largest value over the rounds in which both took turns. Of several runs of a contender in a cell the "
        note += "latest counts, with that run's baseline."
        if data.benchmarks["device"].eq("cpu").any():
            note += " The targets are for GPUs: times on a CPU only show that it works, and are not judged."
        made.append(Listing("benchmarks", "Benchmarks", note, shown, files))
    return made
