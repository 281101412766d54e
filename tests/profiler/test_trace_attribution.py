"""Kernels and memory of a trace go to the node whose range they were launched or allocated in."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from profiler.costs.node_trace import Event, attribute, idle_between, node_trace


def one_iteration(start: int, correlation: int) -> list[Event]:
    """Two nodes that launch two kernels and one; the device runs the last after both ranges."""
    return [
        Event("range", start, start + 10, correlation, rank=5),
        Event("op", start + 1, start + 1, correlation + 1),
        Event("op", start + 2, start + 2, correlation + 2),  # nested in the first
        Event("range", start + 12, start + 20, correlation + 3, rank=6),
        Event("op", start + 13, start + 13, correlation + 4),
        Event("kernel", start + 9, start + 12, correlation + 1),
        Event("kernel", start + 12, start + 19, correlation + 2),
        Event("kernel", start + 40, start + 45, correlation + 4),
        Event("memory", start + 3, start + 3, 0, bytes=700),
        Event("memory", start + 4, start + 4, 0, bytes=300),
        Event("memory", start + 5, start + 5, 0, bytes=-700),
        Event("memory", start + 11, start + 11, 0, bytes=-100),
        Event("memory", start + 14, start + 14, 0, bytes=50),
        Event("memory", start + 22, start + 22, 0, bytes=-250),
    ]


def test_kernels_go_to_the_node_that_launched_them_however_late_they_run() -> None:
    iterations, lost = attribute([*one_iteration(1000, 1), *one_iteration(2000, 101)])
    assert [{rank: (r.kernel_ns, r.kernels) for rank, r in one.items()} for one in iterations] == [
        {5: (10, 2), 6: (5, 1)}
    ] * 2
    assert lost == 0


def test_memory_is_followed_from_node_to_node() -> None:
    (one,), _ = attribute(one_iteration(1000, 1))
    assert (one[5].before, one[5].peak, one[5].after) == (0, 1000, 300)
    assert (one[6].before, one[6].peak, one[6].after) == (200, 250, 250)


def test_a_kernel_without_a_launcher_is_counted_as_lost() -> None:
    stray = Event("kernel", 1050, 1057, 999)
    iterations, lost = attribute([*one_iteration(1000, 1), stray])
    assert lost == 7
    assert iterations[0][6].kernel_ns == 5


@given(st.permutations(one_iteration(1000, 1)))
def test_order_of_the_events_does_not_matter(events: list[Event]) -> None:
    assert attribute(events) == attribute(one_iteration(1000, 1))


@pytest.mark.parametrize(
    ("kernels", "runs", "idle"),
    [
        ([(0, 10), (10, 20)], 1, 0),
        ([(0, 10), (13, 20), (15, 18), (21, 30)], 1, 4),  # one inside another, on a second stream
        (
            [(0, 10), (12, 20), (1000, 1010), (1014, 1020)],
            2,
            3,
        ),  # (2 + 4) / 2; the pause between runs is not idle
    ],
)
def test_idle_time_is_what_no_kernel_covers(kernels: list[tuple[int, int]], runs: int, idle: int) -> None:
    assert idle_between(kernels, runs) == idle


def test_a_real_trace_has_every_range_and_allocation() -> None:
    with node_trace(torch.device("cpu"), memory=True) as trace:
        for _ in range(2):
            with trace.range(3):
                x = torch.zeros(1000)
            with trace.range(4):
                y = x.neg().neg()  # the first is allocated and freed within
            del x, y
    iterations, _ = attribute(trace.events())
    assert [sorted(one) for one in iterations] == [[3, 4], [3, 4]]
    for one in iterations:
        assert (one[3].before, one[3].after) == (0, 4000)
        assert (one[4].before, one[4].peak, one[4].after) == (4000, 12000, 8000)
