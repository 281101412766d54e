"""What a report could not show, and why: one line each on the page and on stderr, while the rest is written.

problems: list[str] = []
table = attempt(problems, "the table of results", pd.DataFrame(), results, runs)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


def attempt(problems: list[str], what: str, otherwise: T, make: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
    """What `make(*given)` returns. Where it fails, `otherwise`, with a line in `problems`; a missing file fails so too.

    Raises the other OSErrors: a full disk or a folder that can't be written concerns the whole report.
    """
    try:
        return make(*given, **named)
    except Exception as error:  # whatever one odd record brings about, the other tables and figures are still right
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise
        problems.append(f"{what} is not shown: {type(error).__name__}: {' '.join(str(error).split())}")
        return otherwise
