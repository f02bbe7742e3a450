"""`Pace`, by the clock of an event loop that skips its waits."""

import asyncio

import pytest
from clock import go

from mirg_jax.chat.asking import Pace


def times(pace, requests):
    """Returns when each request is sent, if all are made at the same time."""

    async def main():
        loop = asyncio.get_running_loop()
        start, gone = loop.time(), []

        async def one(tokens):
            await pace.wait(tokens)
            gone.append(loop.time() - start)

        await asyncio.gather(*map(one, requests))
        return gone

    return go(main())


def test_neither_limit_is_exceeded():
    gone = times(Pace(requests=60, tokens=0), [1] * 5)
    assert gone == pytest.approx([0, 1, 2, 3, 4])
    gone = times(Pace(requests=0, tokens=6000), [100, 300, 100, 100])
    assert gone == pytest.approx([0, 1, 4, 5])
    gone = times(Pace(requests=60, tokens=6000), [100, 300, 10, 10])
    assert gone == pytest.approx([0, 1, 4, 5])
    assert times(Pace(0, 0), [10**6] * 3) == [0, 0, 0]


def test_a_pause_delays_waiting_requests_and_tokens_are_corrected():
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
        pace.correct(500)  # the last request took more than expected
        await one()
        return gone

    gone = go(main())
    assert gone[:2] == pytest.approx([0, 1])
    assert all(when == pytest.approx(11.5) for when in gone[2:4])
    assert gone[4] >= 11.5
