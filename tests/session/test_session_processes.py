"""What a process says of itself: its rank, and that it made each monitor once."""

from __future__ import annotations

import pytest

from tests.conftest import GuardedRun


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, None),
        ({"RANK": "3", "LOCAL_RANK": "1"}, 3),
        ({"LOCAL_RANK": "1"}, 1),
        ({"RANK": "none of yours", "LOCAL_RANK": "0"}, 0),
        ({"RANK": "-1"}, None),
    ],
)
def test_events_say_which_rank_they_happened_on(
    environment: dict[str, str], rank: int | None, guarded: GuardedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    guarded.suite("""
        @pytest.mark.jitguard
        def test_violated(): fakejit.launch("k", n=1)
    """)
    guarded.run()
    assert [event["rank"] for event in guarded.report["events"]] == [rank]


def test_a_monitor_of_ones_own_is_made_once(guarded: GuardedRun) -> None:
    (guarded.path / "counting_monitor.py").write_text(
        "from fakejit_monitor import FakeMonitor\n"
        "class Counting(FakeMonitor):\n"
        "    def __init__(self, recorder):\n"
        "        super().__init__(recorder)\n"
        "        print('made a monitor')\n"
    )
    guarded.suite("""
        @pytest.mark.jitguard
        def test_clean(): pass
    """)
    args = ("--jitguard-monitors=counting_monitor:Counting", "--jitguard-waive=nothing-watched", "-s")
    result = guarded.run("-p", "counting_monitor", *args, fake=False)
    assert result.outlines.count("made a monitor") == 1
