"""docs/claims.yaml and blockshock-artifact: every number of README and docs follows from its record."""

from __future__ import annotations

import gzip
import json
import math
import re
import shlex
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from sweeps.artifact import check, command, pages
from sweeps.artifact.check import FAIL, NOT_HERE, PASS, measure, recompute, sentences
from sweeps.artifact.claims import CLAIMS, RECORDS, Again, ClaimsError, fields_of, read_claims
from sweeps.artifact.machine import Machine, obstacle
from sweeps.artifact.tables import TABLES
from sweeps.artifact.values import TAKES, written
from sweeps.report.tables.report_data import read_report_data
from tests.import_graph import ROOT
from tests.test_docs import _check_jobs

ALL = read_claims(CLAIMS)
RECORDED = {name: claim for name, claim in ALL.claims.items() if claim.record}
PAGES = sorted({page for claim in ALL.claims.values() for page in claim.pages})
NO_GPU = Machine((), 0, 64 * 10**9)


@pytest.mark.parametrize("name", RECORDED)
def test_each_number_follows_from_its_record_and_stands_on_its_page(name: str) -> None:
    outcome = recompute(name, RECORDED[name])
    assert outcome.state == PASS, outcome.said


@pytest.mark.parametrize("page", PAGES)
def test_no_measured_number_of_a_page_is_without_a_claim_or_a_reason(page: str) -> None:
    said = [line for claim in RECORDED.values() if page in claim.pages for line in sentences(claim)[page]]
    exempt = [pattern for patterns in ALL.without_record.get(page, {}).values() for pattern in patterns]
    advice = "add a claim to docs/claims.yaml, or a pattern and the reason to its without_record"
    assert pages.unclaimed(page, said, exempt) == [], advice


def test_the_pages_with_results_are_all_among_them() -> None:
    results = (
        "README.md",
        *(
            f"docs/{name}.md"
            for name in ("results", "performance", "checkpointing", "training-loop", "profiler", "traces")
        ),
    )
    assert set(results) <= set(PAGES)


def test_nothing_in_the_claims_file_is_left_over() -> None:
    """A value that is neither printed nor expected; an exemption whose number the page no longer has."""
    for name, claim in ALL.claims.items():
        printed = {field for lines in claim.printed.values() for line in lines for field in fields_of(line)}
        unused = [key for key, value in claim.values.items() if key not in printed and value.expected is None]
        assert (name, unused) == (name, [])
    for page, reasons in ALL.without_record.items():
        patterns = [pattern for patterns in reasons.values() for pattern in patterns]
        assert (page, [pattern for pattern in patterns if not re.search(pattern, pages.plain(page))]) == (page, [])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("it takes 7.5 ms", 1),
        ("planning took 3 s, a bound of 4/(3s)", 1),
        ("a step of 12% more, or 3 MiB", 2),
        ("N = 4096, B = 64 on 2 GPUs", 0),
        ("torch 2.11.0 and `0.5`", 0),
        ("```\n7.5 ms\n```", 0),
        ("| 22.3 | 67.5 |", 2),
    ],
)
def test_what_counts_as_a_measured_number(tmp_path: Path, monkeypatch, text: str, found: int) -> None:
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    (tmp_path / "page.md").write_text(text)
    assert len(pages.unclaimed("page.md", [], [])) == found


def test_a_number_follows_from_the_records_own_lines() -> None:
    """By another way than the report's tables: 0.82, the geometric mean of 18 ratios on two GPUs."""
    times: dict[tuple[int, int], dict[str, float]] = {}
    text = gzip.decompress((RECORDS / "bench_h200" / "runs.jsonl.gz").read_bytes()).decode()
    for line in text.splitlines():
        for record in json.loads(line)["records"]:
            name = record["method"] + (f"/{record['variant']}" if record.get("variant") else "")
            if record["part"] == "forward" and record["world_size"] == 2:
                times.setdefault((record["N"], record["B"]), {})[name] = record["p50_us"]
    ratios = [cell["block_shock/1100"] / cell["dtensor_row"] for cell in times.values()]
    assert len(ratios) == 18
    said = f"forward takes {statistics.geometric_mean(ratios):.2f} times as long as PyTorch's row-parallel"
    assert said in " ".join((ROOT / "docs" / "performance.md").read_text().split())
    assert said in sentences(ALL.claims["forward_ratios"])["docs/performance.md"][0]


def test_a_page_that_says_another_number_fails_with_what_it_should_say(monkeypatch) -> None:
    plain = pages.plain
    monkeypatch.setattr(
        pages,
        "plain",
        lambda page: plain(page).replace("1.00 to 1.11 times the faster", "1.00 to 1.12 times the faster"),
    )
    outcome = recompute("h1_forward", ALL.claims["h1_forward"])
    assert outcome.state == FAIL
    assert outcome.said == 'README.md does not say: "forward 1.00 to 1.11 times the faster dense method\'s time"'


def test_a_record_that_says_another_number_fails(monkeypatch) -> None:
    real = check.TABLES["comparisons"]
    monkeypatch.setitem(
        check.TABLES, "comparisons", lambda data: (rows := real(data)).assign(ratio=rows["ratio"] * 1.1)
    )
    monkeypatch.setattr(check, "_record", check._record.__wrapped__)  # without what was computed before
    outcome = recompute("h1_forward", ALL.claims["h1_forward"])
    assert (outcome.state, outcome.said) == (FAIL, "low is 1.10, expected 1.00")


def test_the_page_of_the_claims_is_as_generated() -> None:
    text = (ROOT / "docs" / "reference" / "claims.md").read_text()
    assert text == command.as_markdown(command._in_order(ALL.claims)), "blockshock-artifact --list --markdown"


@pytest.mark.slow
def test_the_commands_compose_and_pass_the_checks_of_a_cluster() -> None:
    commands = {text for claim in RECORDED.values() if claim.again for text in claim.again.commands}
    assert len(commands) > 5
    for text in commands:
        _check_jobs([word for word in shlex.split(text)[1:] if not word.startswith("-")])


def test_the_first_part_needs_no_gpu_and_five_minutes() -> None:
    first = [claim.again for claim in ALL.claims.values() if claim.record is None]
    assert len(first) >= 3
    assert [again for again in first if again.gpus] == []
    assert sum(again.minutes for again in first) <= 5


@pytest.mark.parametrize(
    ("again", "cards", "machine", "why"),
    [
        (Again(commands=["x"], minutes=1, gigabytes=1, gpus=1), {"H200"}, NO_GPU, "needs 1 GPU, no GPU here"),
        (
            Again(commands=["x"], minutes=1, gigabytes=1, gpus=2),
            {"H200"},
            Machine(("H200",), 10**11, 1),
            "needs 2 GPUs, 1 here",
        ),
        (
            Again(commands=["x"], minutes=1, gigabytes=1, gpus=1),
            {"H200"},
            Machine(("H100",), 10**11, 1),
            "other card than the record's: H100, not H200",
        ),
        (
            Again(commands=["x"], minutes=1, gigabytes=80, gpus=1),
            set(),
            Machine(("A",), 24 * 10**9, 1),
            "needs 80 GB, a GPU has 24 GB",
        ),
        (Again(commands=["x"], minutes=1, gigabytes=80), set(), NO_GPU, "needs 80 GB, this host has 64 GB"),
        (Again(commands=["x"], minutes=1, gigabytes=80, gpus=2), {"H200"}, Machine(("H200",) * 4, 10**11, 1), ""),
        (Again(commands=["x"], minutes=1, gigabytes=4), set(), NO_GPU, ""),
    ],
)
def test_what_a_machine_lacks_is_said(again: Again, cards: set[str], machine: Machine, why: str) -> None:
    assert obstacle(again, cards, machine) == why


JOB = "blockshock hardware=cpu phase=phase0_correctness method=block_shock model.N=64 model.B=8"
METHODS = {"table": "layers", "where": "passed == True", "value": "method", "take": "distinct", "show": "d"}
AGAIN = {"commands": [JOB], "minutes": 1, "gigabytes": 1}
TINY = {"claim": "It is correct.", "values": {"methods": METHODS | {"expected": 1}}, "again": AGAIN}


def written_claims(folder: Path, **claims: object) -> Path:
    file = folder / "claims.yaml"
    file.write_text(yaml.safe_dump({"claims": claims}, sort_keys=False))
    return file


def wrong(**parts: object) -> dict[str, object]:
    return {"claim": "One.", **parts}


VALUE = {"table": "jobs", "value": "status", "take": "count"}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("claims: [", "claims.yaml: not YAML"),
        ("claims: 3", "Expected `object`, got `int` - at `$.claims`"),
        ({"a": wrong(values={"n": VALUE})}, "claims.a: give a record, or again with commands, or both"),
        ({"a": wrong(record="nowhere", values={"n": VALUE})}, "claims.a: record=nowhere: no such folder in"),
        ({"a": wrong(record="bench_h200")}, "claims.a: give values or lines"),
        ({"a": wrong(record="bench_h200", values={"n": VALUE}, hours=3)}, "claims.a: Object contains unknown field"),
        ({"a": wrong(record="bench_h200", values={"n": {**VALUE, "expected": []}})}, "a.values.n.expected: Expected"),
        ({"a": wrong(record="bench_h200", values={"n": {**VALUE, "table": "job"}})}, "table=job: allowed: runs, jobs,"),
        ({"a": wrong(record="bench_h200", values={"n": {**VALUE, "take": "mean"}})}, "take=mean: allowed: only,"),
        ({"a": wrong(record="bench_h200", values={"n": {**VALUE, "show": ".2q"}})}, "show=.2q: give a format"),
        (
            {"a": wrong(record="bench_h200", values={"n": VALUE}, printed={"README.md": ["{m} jobs"]})},
            "claims.a: printed: {m} is not among its values: n",
        ),
        ({"a": wrong(record="bench_h200", values={"n": VALUE}, printed={"NO.md": ["{n}"]})}, "printed: no page NO.md"),
        ({"a": wrong(record="bench_h200", values={"n": VALUE}, printed={"README.md": ["{n jobs"]})}, "expected '}'"),
        ({"a": wrong(record="bench_h200", values={"n": VALUE}, printed={"README.md": ["{n:d}"]})}, "the value's show"),
        ({"a": {**TINY, "again": {**AGAIN, "commands": ["rm x"]}}}, "'rm' can't be run: allowed: blockshock,"),
        ({"a": {**TINY, "again": {**AGAIN, "commands": []}}}, "claims.a.again.commands: Expected"),
        ({"a": {**TINY, "again": {**AGAIN, "minutes": 0}}}, "claims.a.again.minutes: Expected"),
        ({"a": {**TINY, "values": {"n": VALUE}}}, "no value has an expected number to compare with"),
    ],
)  # fmt: skip
def test_a_wrong_claims_file_is_rejected_in_one_line(tmp_path: Path, capsys, content, problem: str) -> None:
    file = tmp_path / "claims.yaml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump({"claims": content}))
    with pytest.raises(SystemExit) as left:
        command.main(["--claims", str(file)])
    assert left.value.code == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert problem in said.err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--only", "h1_forwrd"], "--only=h1_forwrd: allowed: "),
        (["--claims", "no/such.yaml"], "such.yaml: no such file; claims belong to a checkout"),
        (["--markdown"], "--markdown=true: is a form of --list; give it too"),
        (["--out", "/proc/no", "--only", "premise"], "--out=/proc/no: can't be written"),
    ],
)
def test_wrong_options_are_rejected_in_one_line(capsys, arguments: list[str], problem: str) -> None:
    with pytest.raises(SystemExit) as left:
        command.main(arguments)
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert problem in said


@pytest.fixture
def here(monkeypatch) -> Callable[..., tuple[int, list[str]]]:
    """`here("--only", "premise")`: the exit status and the lines, on a machine without a GPU."""
    monkeypatch.setattr(command, "this_machine", lambda: NO_GPU)

    def run(*arguments: str) -> tuple[int, list[str]]:
        done = pytest.MonkeyPatch()
        lines: list[str] = []
        done.setattr(command.Console, "print", lambda self, text, **_: lines.append(re.sub(r"\[/?[a-z ]*\]", "", text)))
        try:
            command.main(arguments)
            return 0, lines
        except SystemExit as left:
            return int(left.code or 0), lines
        finally:
            done.undo()

    return run


def test_a_claim_is_a_line_from_its_record_and_one_for_here(here, tmp_path: Path) -> None:
    status, lines = here("--only", "premise", "--out", str(tmp_path / "out"))
    assert status == 0
    assert [line.split()[0] for line in lines] == ["pass", "not", "1"]
    assert "needs 4 GPUs, no GPU here" in lines[1]
    assert lines[2] == "1 pass, 1 not here (no GPU)"
    assert not (tmp_path / "out").exists()


def test_measurements_that_take_longer_are_left_out(here) -> None:
    assert here("--only", "premise", "--minutes", "4.5")[1][-1] == "1 pass (no GPU)"
    assert here("--only", "premise", "--minutes", "5")[1][-1] == "1 pass, 1 not here (no GPU)"


def test_a_claim_that_fails_makes_the_exit_status_1_and_json_says_why(tmp_path: Path, capsys) -> None:
    claim = wrong(record="bench_h200", values={"runs": {**VALUE, "show": "d", "expected": 4}})
    with pytest.raises(SystemExit) as left:
        command.main(["--claims", str(written_claims(tmp_path, runs=claim)), "--json"])
    assert left.value.code == 1
    (row,) = json.loads(capsys.readouterr().out)["checks"]
    assert (row["name"], row["state"], row["said"]) == ("runs", FAIL, "runs is 3, expected 4")


def test_a_query_that_finds_nothing_or_makes_no_sense_fails_with_the_reason(tmp_path: Path) -> None:
    parts = {
        "gone": ({"where": "status == 'lost'"}, "no row where status == 'lost'"),
        "name": ({"value": "state"}, "'state'"),
        "kind": ({"take": "median"}, "median of 'status': "),
        "many": (
            {"table": "targets", "value": "measured", "take": "only", "show": ".2f"},
            "39 different values where one is expected",
        ),
    }
    made = {name: wrong(record="bench_h200", values={"n": VALUE | own}) for name, (own, _) in parts.items()}
    for name, claim in read_claims(written_claims(tmp_path, **made)).claims.items():
        outcome = recompute(name, claim)
        assert outcome.state == FAIL
        assert parts[name][1] in outcome.said


def test_a_line_with_a_column_that_is_not_there_fails_with_the_line(tmp_path: Path) -> None:
    lines = [{"table": "jobs", "page": "README.md", "line": "| {stats} |"}]
    claim = read_claims(written_claims(tmp_path, a=wrong(record="bench_h200", lines=lines))).claims["a"]
    outcome = recompute("a", claim)
    assert (outcome.state, outcome.said) == (FAIL, "line: '| {stats} |': KeyError: 'stats'")


def test_ctrl_c_says_how_to_resume(tmp_path: Path, monkeypatch, capsys) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "recompute", interrupted)
    with pytest.raises(SystemExit) as left:
        command.main(["--only", "premise", "--out", str(tmp_path / "out")])
    assert left.value.code == 130
    assert capsys.readouterr().err.endswith("out resumes its sweeps\n")


def test_list_names_every_claim_and_its_commands(capsys) -> None:
    command.main(["--list", "--json"])
    listed = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in listed] == list(
        dict(sorted(ALL.claims.items(), key=lambda item: item[1].record is not None))
    )
    command.main(["--list", "--only", "traces"])
    said = capsys.readouterr().out
    assert "record: traces_h200; printed in docs/traces.md" in said
    assert "1 GPU, 3 min, 30 GB" in said


@pytest.mark.parametrize(
    ("compare", "found", "passes"),
    [
        *(("about", 1.04, True), ("about", 1.06, False), ("about", 0.94, False)),
        *(("at most", 0.1, True), ("at most", 1.06, False), ("at least", 9.0, True), ("at least", 0.94, False)),
    ],
)
def test_a_tolerance_is_a_share_of_the_expected_number(compare: str, found: float, passes: bool) -> None:
    value = ALL.claims["forward_ratios"].values["over_row"]
    value = type(value)(table=value.table, value=value.value, expected=1.0, compare=compare)
    assert (check._off("over_row", value, found, 0.05) == "") is passes


def test_numbers_are_written_as_pages_print_them() -> None:
    assert written([22.304, 155.248, 3590.3], "3 digits") == "22.3 | 155 | 3590"
    assert (written(-0.003, "%"), written(0.0871, ".1%"), written(1, "word")) == ("0", "8.7", "one")
    assert written(0.012328, ".4f up") == "0.0124"  # a bound is rounded up
    assert written(0.25, ".2f up") == "0.25"
    assert math.isclose(TAKES["geometric mean"](check.pd.Series([1.0, 4.0])), 2.0)


@pytest.mark.slow
def test_a_command_is_run_once_for_two_claims_and_its_records_are_judged(tmp_path: Path) -> None:
    wrong_count = TINY | {"values": {"methods": METHODS | {"expected": 3}}}
    broken = TINY | {"again": AGAIN | {"commands": ["blockshock phase=no_such_phase"]}}
    claims = read_claims(written_claims(tmp_path, right=TINY, three=wrong_count, broken=broken)).claims
    done: check.Done = {}
    outcomes = {name: measure(name, claim, NO_GPU, tmp_path / "out", done) for name, claim in claims.items()}
    assert (outcomes["right"].state, outcomes["right"].said) == (PASS, "methods 1")
    assert (outcomes["three"].state, outcomes["three"].said) == (FAIL, "methods is 1, expected about 3")
    assert outcomes["broken"].state == FAIL
    assert outcomes["broken"].said.startswith("exit status 2 of: blockshock phase=no_such_phase; see ")
    assert "phase=no_such_phase" in (tmp_path / "out" / "broken" / "command.log").read_text()
    assert len(done) == 2
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"right", "broken"}


@pytest.mark.parametrize("uncounted", [[], ["aten.sort"], ["aten.sort", "aten.topk"]])
def test_a_trace_is_the_slowest_ranks_whatever_operators_have_no_formula(
    write_run, record, tmp_path, uncounted
) -> None:
    parts = ("forward", "backward", "optimizer", "other", "exposed_communication", "idle")
    trace = {f"{part}_ms": [0.5, 0.5] for part in parts} | {"backend": "kineto", "slowdown": 0.01}
    trace |= {"step_ms": [3.0, 4.0], "kernels": [5, 6], "attributed": 1.0, "uncounted_operators": uncounted}
    write_run("trace", [record("trace", "dense_single", total_step=4.0, trace=trace)])
    [row] = TABLES["traces"](read_report_data([tmp_path])).to_dict("records")
    assert (row["step_ms"], row["kernels"], row["attributed"]) == (4.0, 6, 1.0)
    assert row["uncounted_operators"] == uncounted


@pytest.mark.gpu
def test_one_gpu_of_the_records_kind_measures_a_claim_again(tmp_path: Path) -> None:
    """The shortest one; on another card it must say so."""
    from sweeps.artifact.machine import this_machine

    machine = this_machine()
    outcome = measure("traces", ALL.claims["traces"], machine, tmp_path, {})
    assert outcome.state == (PASS if machine.gpus[0] == "NVIDIA H200" else NOT_HERE), outcome.said


def test_the_dockerfile_runs_the_makefile(tmp_path: Path) -> None:
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    words = {line.split()[0] for line in lines}
    assert words <= {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "CMD"}
    (image,) = [line.split()[1] for line in lines if line.startswith("FROM")]
    assert re.fullmatch(r"[a-z]+:[\w.-]+", image), "a plain image:tag, of whatever registry the host has"
    makefile = (ROOT / "Makefile").read_text()
    for line in lines:
        if line.startswith("RUN"):
            assert line.startswith("RUN make ")
        if line.startswith("CMD"):
            program, target = json.loads(line.removeprefix("CMD"))
            assert program == "make"
            assert f"\n{target}:" in makefile
    (installed,) = [line.removeprefix("RUN make ") for line in lines if line.startswith("RUN")]
    dry = subprocess.run(["make", "-n", "-B", installed], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "-m venv .venv" in dry
    assert "--constraint constraints.txt" in dry
    (path,) = [line.partition("PATH=")[2] for line in lines if line.startswith("ENV PATH")]
    (home,) = [line.split()[1] for line in lines if line.startswith("WORKDIR")]
    assert path.startswith(f"{home}/.venv/bin:")
    version = tuple(map(int, image.partition(":")[2].split("-")[0].split(".")))
    assert version >= (3, 11)
    tests = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())["jobs"]["tests"]
    assert image in {f"python:{python}-bookworm" for python in tests["strategy"]["matrix"]["python"]}


def test_the_image_leaves_out_what_git_ignores_and_keeps_the_records() -> None:
    left_out = (ROOT / ".dockerignore").read_text().split("\n")
    assert {".git", ".venv", "outputs/*", "!outputs/reference"} <= set(left_out)


def test_a_missing_claims_file_is_an_error_with_a_place() -> None:
    with pytest.raises(ClaimsError, match=r"nowhere\.yaml: no such file"):
        read_claims(Path("nowhere.yaml"))
