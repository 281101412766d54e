"""TensorBoard's event files, a folder per run: scalars by step, and the configuration for the HParams tab."""

from __future__ import annotations

from pathlib import Path

from sweeps.report.exports.one_run import OneRun, each_run
from sweeps.report.tables.report_data import ReportData
from sweeps.text import counted


def write_events(data: ReportData, folder: Path) -> str:
    count = 0
    for run in each_run(data.runs):
        _write(run, folder / run.name)
        count += 1
    return f"{counted(count, 'run')} for tensorboard --logdir"


def _write(run: OneRun, folder: Path) -> None:
    from torch.utils.tensorboard.summary import hparams
    from torch.utils.tensorboard.writer import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for measured in run.measurements:
            for name, number in measured.numbers.items():
                writer.add_scalar(_tag(name), number, measured.step, walltime=measured.unix_s)
        last = run.measurements[-1].numbers if run.measurements else {}
        for summary in hparams(dict(run.set), {_tag(name): number for name, number in last.items()}):
            writer._get_file_writer().add_summary(summary)  # add_hparams would make a second run of it
        facts = [f"| {key} | {value} |" for key, value in (run.ran_on | {"status": run.status}).items()]
        writer.add_text("run", "\n".join(["| | |", "|---|---|", *facts]))


def _tag(name: str) -> str:
    """TensorBoard groups by what stands before the slash."""
    return name.replace(".", "/", 1)
