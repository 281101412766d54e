"""A report of thousands of records: one page that opens, with every row in it."""

from __future__ import annotations

import base64
import gzip
import io
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sweeps.report import write_report
from sweeps.report.figures.draw import own_style
from sweeps.report.page.short_svg import compact
from tests.sweeps.browser import Page
from tests.sweeps.conftest import make_record

METHODS = ("dense_single", "dense_tp_row", "masked_split_dense", "block_shock")
TABLE = "document.querySelector('[data-table=\"forward\"]')"
TOOLS = f"{TABLE}.previousElementSibling"
COUNT = f"{TOOLS}.querySelector('.count').textContent"
SIZES = f"[...{TABLE}.querySelectorAll('tbody tr')].map(row => row.cells[1].textContent)"
READY = f"""new Promise(done => {{
  const look = () => {TOOLS}?.classList.contains("tools") ? done() : setTimeout(look, 20); look(); }})"""


def write_many(path: Path, count: int) -> None:
    """A packed experiment: `count` runs of forward passes and training steps, no two of one size or one time."""
    draw = random.Random(0)
    with gzip.open(path, "wt", compresslevel=1) as file:
        for i in range(count):
            size, time, is_step = 64 + 4 * i, draw.uniform(1, 2), i % 5 < 2
            phase = "phase3_train_step" if is_step else "phase1_forward"
            regions = {"total_step": 3 * time, "backward": time} if is_step else {"floor": 0.5}
            given = {"error": draw.uniform(1e-3, 2e-3), "limit": 3e-3, "memory_peak_bytes": draw.randrange(2**30)}
            line = make_record(
                phase, METHODS[i // 7 % 4], forward=time, allreduce=time / 9, N=size, K=size,
                world_size=2 if is_step else (1, 2, 4)[i % 3], weight_bytes=size * size, **regions, **given,
            )  # fmt: skip
            line["timings_ms"]["forward"]["blocks_p50_ms"] = [time * draw.uniform(0.9, 1.1) for _ in range(5)]
            status = {"status": "ok", "reason": "", "config_hash": str(i), "schema": 1, "host": "a"}
            status |= {"started": "2026-01-02T03:04:00.000+00:00", "ended": "2026-01-02T03:05:00.000+00:00"}
            config = {"phase": {"name": phase}, "method": {"name": line["method"]}, "hardware": {"backend": "gloo"}}
            run = {"schema": 1, "folder": f"run{i}", "status": status, "config": config, "env": {}, "records": [line]}
            file.write(json.dumps(run) + "\n")


# The peak of the resident set, of the process itself: ru_maxrss would be its parent's, too.
MEASURED = """
import re
from pathlib import Path
from sweeps.report.command import main
try:
    main()
finally:
    peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
    print(1024 * int(peak.group(1)))
"""
TEXT = {"capture_output": True, "text": True}


@pytest.mark.slow
def test_ten_thousand_sizes_are_a_page_below_3_mb_made_in_1_gib(tmp_path):
    write_many(tmp_path / "runs.jsonl.gz", 10_000)
    done = subprocess.run([sys.executable, "-c", MEASURED, str(tmp_path), "--out", str(tmp_path / "out")], **TEXT)
    assert done.returncode == 0, done.stderr
    peak_bytes = int(done.stdout.split()[-1])
    page = tmp_path / "out" / "report.html"
    assert "is not shown" not in page.read_text()
    assert page.stat().st_size < 3e6
    assert peak_bytes < 2**30


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    write_many(folder / "runs.jsonl.gz", 2000)  # 1200 forward passes
    return write_report([folder], folder / "out")


def test_every_row_of_a_long_table_is_sorted_filtered_and_shown(long):
    with Page(long) as page:
        page.evaluate(READY)
        assert page.evaluate(COUNT) == "1200 of 1200 rows, 1000 more below"
        heading = f'[...{TABLE}.querySelectorAll("th button")].find(b => b.textContent === "N")'
        page.click(heading)
        page.click(heading)
        assert page.evaluate(SIZES)[:2] == [str(64 + 4 * i) for i in (1999, 1998)]
        page.click(f"{TOOLS}.querySelector('input')")
        page.type("7620")
        assert page.evaluate(SIZES) == ["7620"]
        assert page.evaluate("document.querySelectorAll('.rest').length") == 0
        assert page.requested == [long.resolve().as_uri(), *(url for url in page.requested if url.startswith("data:"))]


def test_a_row_that_the_script_makes_is_the_row_of_the_html(long):
    """The first rows are there twice: written as HTML, and among those that the script unpacks."""
    written = long.read_text().split('data-table="forward"')[1].split("</table>")[0]
    with Page(long) as page:
        page.evaluate(READY)
        cells = f"[...{TABLE}.querySelectorAll('tbody td')].map(cell => [cell.className.trim(), cell.innerHTML])"
        shown = page.evaluate(cells)
        html = json.dumps(f"<table><tbody>{written.split('>', 1)[1].split('<tbody', 1)[1].split('>', 1)[1]}</table>")
        parse = f"[...new DOMParser().parseFromString({html}, 'text/html').querySelectorAll('td')]"
        assert shown == page.evaluate(f"{parse}.map(cell => [cell.className.trim(), cell.innerHTML])")
        assert len(shown) >= 200 * 6


def test_without_a_script_the_finding_and_the_first_rows_are_there(long):
    text = long.read_text()
    assert '<p class="finding">' in text
    table = text.split('data-table="forward"')[1].split("</section>")[0]
    assert table.count("<tr>") == 1 + 200
    assert "The first 200 of 1200 rows" in table
    assert 'href="tables/forward.csv"' in table


@pytest.mark.parametrize("kind", ["scatter", "line", "bars"])
def test_many_marks_take_few_bytes_and_look_the_same(kind, tmp_path):
    from matplotlib.figure import Figure

    draw, count = np.random.default_rng(0), 3000
    x, y = draw.uniform(size=(2, count))
    with own_style():
        figure = Figure((4, 3))
        axis = figure.add_subplot()
        if kind == "scatter":
            for marker, colour in (("o", "#0072b2"), ("s", "#d55e00")):
                axis.scatter(x[::2], y[::2], c=colour, marker=marker, s=9, alpha=0.8, edgecolors="white")
                x, y = y, x
        elif kind == "line":
            axis.plot(x, y, "^", color="#0072b2", ms=3)
        else:
            axis.errorbar(x, y, yerr=0.01, fmt="none", color="#d55e00", capsize=2)
        figure.savefig(tmp_path / "whole.svg")
    whole = (tmp_path / "whole.svg").read_text()
    short = compact(whole)
    assert len(short) < len(whole) / 5
    (tmp_path / "short.svg").write_text(short)
    one, other = (picture(tmp_path / f"{name}.svg") for name in ("whole", "short"))
    assert np.abs(one - other).mean() < 0.3 * np.abs(one - one.max()).mean()
    blocks = [image[:288, :384].reshape(24, 12, 32, 12, 3).mean((1, 3)) for image in (one, other)]
    assert np.abs(blocks[0] - blocks[1]).max() < 25  # of 255: nothing is missing anywhere


def picture(path: Path) -> np.ndarray:
    from PIL import Image

    with Page(path) as page:
        shot = page.call("Page.captureScreenshot", format="png")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB"), dtype=float)
