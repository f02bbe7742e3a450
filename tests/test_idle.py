"""The share of a trace's time in which devices wait."""

import pytest

from benchmarks import idle


@pytest.mark.parametrize(
    ("intervals", "share"),
    [
        ([(0, 10)], 0),
        ([(5, 10), (0, 4)], 0.1),
        ([(0, 8), (2, 3), (7, 9), (10, 20)], 0.05),
        ([], 1),
    ],
)
def test_time_that_no_program_covers_is_idle(intervals, share):
    assert idle.idle(intervals) == pytest.approx(share)


def test_a_trace_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no \\*.xplane.pb"):
        idle.read_trace(tmp_path)
