"""The report in a real browser: sorting, filtering, both themes, a phone's width, and nothing asked of the network."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from browser import CHROMIUM, Page

from sweeps.report.command import write_report
from tests.sweeps.conftest import make_record, writer

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")

TABLE = 'document.querySelector("[data-table=forward]")'
COLUMN = f"""(name => {{
  const at = [...{TABLE}.querySelectorAll("th")].findIndex(th => th.textContent === name);
  return [...{TABLE}.querySelectorAll("tbody tr")].map(row => row.cells[at].textContent);
}})"""
HEADER = f'(name => [...{TABLE}.querySelectorAll("th button")].find(b => b.textContent === name))'
TOOLS = f"{TABLE}.previousElementSibling"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Times whose order as text is not their order as numbers; one layer without a speedup. No test changes it."""
    top, record = tmp_path_factory.mktemp("report"), make_record
    write_run = writer(top / "sweep")
    for n, time in ((64, 9.0), (128, 10.0), (256, 0.5), (512, 100.0)):
        write_run(f"dense{n}", [record("phase1_forward", "dense_single", forward=time, N=n, K=n)])
        write_run(f"ours{n}", [record("phase1_forward", "block_shock", forward=2 * time, N=n, K=n)])
    write_run("alone", [record("phase1_forward", "block_shock", forward=7.0, N=1024, K=1024)])
    write_run("broken", None, "failed", "<img src=http://example.invalid/x> " + "a long reason " * 20)
    return write_report([top / "sweep"], top / "out")


def test_a_press_on_a_heading_sorts_by_number_and_a_second_one_turns_round(report):
    with Page(report) as page:
        times = [9.0, 18.0, 10.0, 20.0, 0.5, 1.0, 100.0, 200.0, 7.0]
        assert sorted(map(float, page.evaluate(f'{COLUMN}("forward, ms")'))) == sorted(times)
        page.click(f'{HEADER}("forward, ms")')
        assert list(map(float, page.evaluate(f'{COLUMN}("forward, ms")'))) == sorted(times)
        page.click(f'{HEADER}("forward, ms")')
        assert list(map(float, page.evaluate(f'{COLUMN}("forward, ms")'))) == sorted(times, reverse=True)
        page.click(f'{HEADER}("method")')
        methods = page.evaluate(f'{COLUMN}("method")')
        assert methods == sorted(methods)
        assert page.evaluate(f'{HEADER}("method").parentElement.ariaSort') == "ascending"


def test_cells_that_say_nothing_stay_last_whichever_way_one_sorts(report):
    with Page(report) as page:
        for _ in range(2):
            page.click(f'{HEADER}("× dense")')
            assert page.evaluate(f'{COLUMN}("× dense")')[-1] == ""


def test_words_and_choices_filter_rows_together(report):
    with Page(report) as page:
        page.click(f'{TOOLS}.querySelector("input")')
        page.type(
            "BLOCK_shock gaussian" if page.evaluate(f'{TABLE}.textContent.includes("gaussian")') else "BLOCK_shock"
        )
        assert page.evaluate(f'{COLUMN}("method")') == ["block_shock"] * 5
        assert page.evaluate(f'{TOOLS}.querySelector(".count").textContent') == "5 of 9 rows"
        select = f'[...{TOOLS}.querySelectorAll("label")].find(l => l.firstChild.data === "N").querySelector("select")'
        page.evaluate(f'{select}.value = "=256"; {select}.dispatchEvent(new Event("change"))')
        assert page.evaluate(f'{COLUMN}("N")') == ["256"]
        page.evaluate(f'{select}.value = "*"; {select}.dispatchEvent(new Event("change"))')
        page.click(f'{TOOLS}.querySelector("input")')
        page.type(" nosuchword")
        assert page.evaluate(f'{COLUMN}("N")') == []


def test_a_long_table_shows_two_hundred_rows_at_a_time_and_filters_all_of_them(write_run, record, tmp_path):
    rows = [record("phase1_forward", "block_shock", forward=1.0 + i, N=64 + 4 * i, K=64) for i in range(250)]
    write_run("many", rows)
    with Page(write_report([tmp_path / "sweep"], tmp_path / "out")) as page:
        assert len(page.evaluate(f'{COLUMN}("N")')) == 200
        page.click(f'{HEADER}("N")')
        page.click(f'{HEADER}("N")')
        assert page.evaluate(f'{COLUMN}("N")')[0] == str(64 + 4 * 249)
        page.click(f'{TOOLS}.querySelector(".more")')
        assert len(page.evaluate(f'{COLUMN}("N")')) == 250


VISIBLE = f"""[...{TABLE}.querySelectorAll("th")]
  .filter(th => getComputedStyle(th).display !== "none").map(th => th.textContent)"""
FITS = f"{TABLE}.scrollWidth <= {TABLE}.clientWidth"
PICK = f"""(name => [...{TOOLS}.querySelectorAll(".columns label")]
  .find(label => label.textContent === name).querySelector("input"))"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Two kernels and two masks, with every column that a forward pass has. No test changes it."""
    top, record = tmp_path_factory.mktemp("wide"), make_record
    write_run = writer(top / "sweep")
    for n in (4096, 8192):
        for mask in ("complement_1100_0011", "random_2of4"):
            for kernel, time in (("cusparselt", 2.0), ("gather", 1.0)):
                given = {"N": n, "K": n, "mask": mask, "world_size": 2, "floor": 0.5, "allreduce": 0.1}
                line = record(
                    "phase1_forward", "block_shock", forward=time, layer={"kernel": {"name": kernel}}, **given
                )
                line["timings_ms"]["forward"]["blocks_p50_ms"] = [time] * 5
                write_run(f"{n}{mask}{kernel}", [line])
        write_run(f"row{n}", [record("phase1_forward", "dense_tp_row", forward=1.5, N=n, K=n, world_size=2)])
    return write_report([top / "sweep"], top / "out")


def test_a_phone_shows_method_size_and_time_and_every_hidden_column_can_be_shown(wide):
    with Page(wide, 390) as page:
        visible = page.evaluate(VISIBLE)
        assert visible[0] == "method"
        assert "forward, ms" in visible
        assert "mask" not in visible
        assert page.evaluate(FITS)
        edge = f'[...{TABLE}.querySelectorAll("th")].find(th => th.textContent === "forward, ms")'
        assert page.evaluate(f"{edge}.getBoundingClientRect().right") <= 390
        page.click(f'{TOOLS}.querySelector(".columns summary")')
        page.click(f'{PICK}("mask")')
        assert "mask" in page.evaluate(VISIBLE)
        page.click(f'[...{TOOLS}.querySelectorAll(".columns button")].find(b => b.textContent === "all")')
        assert len(page.evaluate(VISIBLE)) == page.evaluate(f'{TABLE}.querySelectorAll("th").length')
        page.click(f'[...{TOOLS}.querySelectorAll(".columns button")][1]')
        assert page.evaluate(VISIBLE) == visible


@pytest.mark.parametrize("width", [1100, 1400])
def test_a_table_fits_its_window_and_leads_with_method_size_time_and_ratio(wide, width):
    with Page(wide, width) as page:
        assert page.evaluate(FITS)
        assert page.evaluate(f"{TABLE}.clientWidth") <= 1140
        leads = ["method", "N", "forward, ms", "95% interval, ms", "× row-parallel"]
        assert page.evaluate(VISIBLE)[:5] == leads
        same = f"{TOOLS}.previousElementSibling.textContent"
        assert "B 8; P 2; dtype fp32" in page.evaluate(same)


def test_the_best_of_each_size_is_bold(wide):
    with Page(wide) as page:
        bold = page.evaluate(f'[...{TABLE}.querySelectorAll("td.best")].map(cell => cell.textContent)')
        assert bold == ["1.00"] * 4  # of each size the kernel gather, with either mask
        weight = page.evaluate(f'getComputedStyle({TABLE}.querySelector("td.best")).fontWeight')
        assert int(weight) >= 700


def test_sort_filter_and_columns_are_in_the_address_and_come_back_from_it(wide):
    with Page(wide) as page:
        page.click(f'{HEADER}("N")')
        page.click(f'{HEADER}("N")')
        page.click(f'{TOOLS}.querySelector("input")')
        page.type("block_shock")
        page.click(f'{TOOLS}.querySelector(".columns summary")')
        page.click(f'{PICK}("TFLOP/s")')
        select = (
            f'[...{TOOLS}.querySelectorAll("label")].find(l => l.firstChild.data === "kernel").querySelector("select")'
        )
        page.evaluate(f'{select}.value = "=gather"; {select}.dispatchEvent(new Event("change"))')
        rows, columns = page.evaluate(f'{COLUMN}("N")'), page.evaluate(VISIBLE)
        assert rows == ["8192", "8192", "4096", "4096"]
        page.click("document.querySelector('nav a[href=\"#tables\"]')")  # a link of the contents loses none of it
        address = page.evaluate("new Promise(done => setTimeout(() => done(location.hash), 100))")
        assert address.startswith("#tables&")
        page.call("Page.navigate", url="about:blank")
        page.call("Page.navigate", url=wide.resolve().as_uri() + address)
        page._until("Page.loadEventFired")
        page.evaluate(
            "new Promise(done => document.readyState === 'complete' ? done() : addEventListener('load', done))"
        )
        assert page.evaluate("location.hash") == address
        assert page.evaluate(f'{COLUMN}("N")') == rows
        assert page.evaluate(f'{COLUMN}("kernel")') == ["gather"] * 4
        assert page.evaluate(VISIBLE) == columns
        assert page.evaluate(f'{TOOLS}.querySelector("input").value') == "block_shock"


def test_a_row_leads_to_its_run_folder(wide):
    with Page(wide) as page:
        links = page.evaluate(f'[...{TABLE}.querySelectorAll("td a")].map(a => a.href)')
        assert len(links) == 10
        folders = {unquote(link.removeprefix("file://")) for link in links}
        assert folders == {str(folder) for folder in (wide.parents[1] / "sweep").iterdir()}


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_fits_its_window_and_is_readable(report, width, dark):
    """No sideways scrolling of the page itself; text at least 4.5 times as bright as its ground, or the other way."""
    with Page(report, width, dark) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("getComputedStyle(document.body).fontSize") == "16px"
        colours = "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        ink, paper = map(luminance, page.evaluate(colours))
        assert (ink > paper) is dark
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 4.5
        loaded = "[...document.images].map(image => image.complete && image.naturalWidth > 100)"
        assert page.evaluate(loaded)
        assert all(page.evaluate(loaded))


def test_nothing_is_asked_of_the_network_and_what_a_run_says_is_shown_as_text(report):
    with Page(report) as page:
        page.click(f'{HEADER}("N")')
        asked = [url for url in page.requested if not url.startswith("data:")]
        assert asked == [report.resolve().as_uri()]
        assert "<img src=http://example.invalid/x>" in page.evaluate('document.querySelector("#jobs").textContent')


def test_a_request_would_have_been_seen(report):
    """The control of the test above: without the page's policy, an image from elsewhere is asked for."""
    text = report.read_text().replace("Content-Security-Policy", "ignored")
    other = report.with_name("other.html")
    other.write_text(text.replace("<main>", '<main><img src="http://127.0.0.1:9/x.png">'))
    with Page(other) as page:
        assert "http://127.0.0.1:9/x.png" in page.requested


def test_the_policy_keeps_the_page_from_asking_even_if_markup_came_through(report):
    script = '<script>document.title = "taken over"</script><img src="http://127.0.0.1:9/x.png">'
    other = report.with_name("taken_over.html")
    other.write_text(report.read_text().replace("<main>", f"<main>{script}"))
    with Page(other) as page:
        assert page.evaluate("document.title") != "taken over"
        assert page.evaluate("document.querySelector('main img').naturalWidth") == 0


def luminance(colour: str) -> float:
    """WCAG 2's relative luminance of `rgb(r, g, b)`."""
    parts = [int(part) / 255 for part in colour[4:-1].split(",")]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
