"""What a user watches while a sweep runs: how many are done, what runs now, each failure as it happens, time left."""

from __future__ import annotations

import time
from collections import Counter

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sweeps.text import clock

ROWS = 8  # running jobs shown
COLOURS = {"ok": "green", "unsupported": "dim", "oom": "yellow", "failed": "red", "timeout": "red", "unreadable": "red"}


class Board:
    """Counts, and a live table on a terminal; elsewhere only the lines that report a failure."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.count: Counter[str] = Counter()
        self.kept = 0  # `ok` before this launch
        self.retried = 0
        self.note = ""  # why nothing starts, or where jobs wait
        self._started, self._done_before = time.monotonic(), 0
        self._running: dict[str, tuple[float, str]] = {}
        self._console = Console(stderr=True)
        self._live = Live(
            get_renderable=self._table,
            console=self._console,
            auto_refresh=self._console.is_terminal,
            refresh_per_second=1,  # seldom: on a CPU the job being timed has one core less while it is drawn
            transient=True,
        )

    def __enter__(self) -> Board:
        self._started, self._done_before = time.monotonic(), self.done
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    @property
    def done(self) -> int:
        return self.count.total()

    @property
    def left(self) -> int:
        return self.total - self.done

    @property
    def failed(self) -> int:
        return self.count["failed"] + self.count["timeout"]

    def say(self, note: str) -> None:
        """Say once, and keep in sight on a terminal, why nothing starts."""
        if note and note != self.note:
            self._console.print(note, style="yellow", soft_wrap=True, highlight=False)
        self.note = note

    def started(self, name: str, where: str = "") -> None:
        if name not in self._running:
            self._running[name] = (time.monotonic(), where)

    def ended(self, name: str, status: str, reason: str, again: bool = False) -> None:
        self._running.pop(name, None)
        self.retried += again
        self.count[status] += not again
        if status not in ("ok", "unsupported"):
            what = f"{status}, tried again" if again else status
            colour = COLOURS.get(status, "red")
            self._console.print(f"[{colour}]{what}[/]: {escape(name)}: {escape(reason)}", soft_wrap=True)

    def _table(self) -> RenderableType:
        now = time.monotonic()
        counts = Text("  ").join(
            [
                Text(f"{self.done}/{self.total} done"),
                *(Text(f"{n} {status}", style=COLOURS.get(status, "")) for status, n in self.count.items() if n),
                Text(f"{len(self._running)} running"),
                Text(f"elapsed {clock(now - self._started)}"),
                Text(f"ETA {self._time_left(now)}"),
            ]
        )
        rows = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for name, (since, where) in list(self._running.items())[:ROWS]:
            rows.add_row(clock(now - since), where, Text(name, no_wrap=True, overflow="ellipsis"))
        more = len(self._running) - ROWS
        if more > 0:
            rows.add_row("", "", f"and {more} more")
        bar = ProgressBar(total=max(self.total, 1), completed=self.done, width=40)
        return Group(bar, counts, rows, *([Text(self.note, style="yellow")] if self.note else []))

    def _time_left(self, now: float) -> str:
        done = self.done - self._done_before
        return clock((now - self._started) / done * self.left) if done else "?"
