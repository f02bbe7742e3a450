"""Pace and purse, by the clock of an event loop that skips its waits."""

import asyncio

import pytest

from mirg_jax.trajectories.limits import CapReached, Pace, Purse


class SkippingLoop(asyncio.SelectorEventLoop):
    """Time passes only by sleeping, and at once."""

    now = 1000.0

    def time(self):
        return self.now

    def _run_once(self):
        if not self._ready and self._scheduled:
            self.now = max(self.now, self._scheduled[0].when())
        super()._run_once()


def go(main):
    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        return runner.run(main)


def times(pace, requests):
    """When each of the requests went; all come at once."""

    async def main():
        loop = asyncio.get_running_loop()
        start, gone = loop.time(), []

        async def one(tokens):
            await pace.wait(tokens)
            gone.append(loop.time() - start)

        await asyncio.gather(*map(one, requests))
        return gone

    return go(main())


def test_neither_limit_is_passed():
    gone = times(Pace(requests=60, tokens=0), [1] * 5)
    assert gone == pytest.approx([0, 1, 2, 3, 4])
    gone = times(Pace(requests=0, tokens=6000), [100, 300, 100, 100])
    assert gone == pytest.approx([0, 1, 4, 5])
    gone = times(Pace(requests=60, tokens=6000), [100, 300, 10, 10])
    assert gone == pytest.approx([0, 1, 4, 5])
    assert times(Pace(0, 0), [10**6] * 3) == [0, 0, 0]


def test_a_pause_holds_those_who_wait_and_tokens_are_corrected():
    async def main():
        loop = asyncio.get_running_loop()
        pace, start, gone = Pace(60, 6000), loop.time(), []

        async def one():
            await pace.wait(100)
            gone.append(loop.time() - start)

        tasks = [asyncio.create_task(one()) for _ in range(4)]
        await asyncio.sleep(1.5)
        pace.pause(10)
        await asyncio.gather(*tasks)
        pace.correct(500)  # the last took more than was thought
        await one()
        return gone

    gone = go(main())
    assert gone[:2] == pytest.approx([0, 1])
    assert all(when == pytest.approx(11.5) for when in gone[2:4])
    assert gone[4] >= 11.5


def test_purse_waits_for_what_is_held_back_and_then_stops():
    async def main():
        spent = [0.0]
        purse = Purse(1.0, lambda: spent[0])
        order = []

        async def one(name, most, cost, seconds):
            try:
                async with purse.reserve(most):
                    order.append(name)
                    await asyncio.sleep(seconds)
                    spent[0] += cost
            except CapReached:
                order.append(f"no {name}")

        await asyncio.gather(
            one("a", 0.6, 0.1, 3), one("b", 0.6, 0.3, 1), one("c", 0.7, 0.0, 1), one("d", 2, 2, 1)
        )
        return order, spent[0]

    # b needs what a holds back; c what b does; d more than there is.
    order, spent = go(main())
    assert order[:2] == ["a", "b"] and set(order[2:]) == {"no c", "no d"}
    assert spent == pytest.approx(0.4)


def test_no_cap_is_no_limit():
    async def main():
        purse = Purse(0.0, lambda: 10.0**6)
        async with purse.reserve(10.0**6):
            return True

    assert go(main())
