"""The pace of requests, on a clock of the test's own."""

from __future__ import annotations

import asyncio

from inlay.judges.endpoint import Pace


class Clock:
    """Time that passes only where somebody sleeps; sleepers wake in order."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


def test_requests_are_spaced_evenly() -> None:
    clock = Clock()
    pace = Pace(120, lambda: clock.now, clock.sleep)

    async def five() -> None:
        await asyncio.gather(*(pace.turn() for _ in range(5)))

    asyncio.run(five())
    assert clock.slept == [0.5, 1.0, 1.5, 2.0], "the first goes at once, each other half a second after the one before"


def test_what_was_not_used_is_not_saved_up() -> None:
    clock = Clock()
    pace = Pace(60, lambda: clock.now, clock.sleep)
    asyncio.run(pace.turn())
    clock.now += 30
    for _ in range(2):
        asyncio.run(pace.turn())
    assert clock.slept == [1.0]


def test_without_a_limit_nobody_waits() -> None:
    clock = Clock()
    pace = Pace(None, lambda: clock.now, clock.sleep)
    for _ in range(5):
        asyncio.run(pace.turn())
    assert clock.slept == []


def test_a_hold_is_for_all_and_the_longest_counts() -> None:
    clock = Clock()
    pace = Pace(None, lambda: clock.now, clock.sleep)
    pace.hold(30)
    pace.hold(10)
    for _ in range(3):
        asyncio.run(pace.turn())
    clock.now += 30
    asyncio.run(pace.turn())
    assert clock.slept == [30.0] * 3


def test_after_a_hold_requests_are_spaced_again() -> None:
    clock = Clock()
    pace = Pace(60, lambda: clock.now, clock.sleep)
    pace.hold(5)
    for _ in range(3):
        asyncio.run(pace.turn())
    assert clock.slept == [5.0, 6.0, 7.0]


def test_a_hold_reaches_who_waits_already() -> None:
    clock = Clock()

    async def sleep(seconds: float) -> None:
        await clock.sleep(seconds)
        clock.now += seconds
        if len(clock.slept) == 1:
            pace.hold(30)

    pace = Pace(60, lambda: clock.now, sleep)
    for _ in range(3):
        asyncio.run(pace.turn())
    assert clock.slept == [1.0, 30.0, 1.0]
