"""`Pace` by the clock of an event loop that skips its waits, and when a server counts as down."""

import asyncio

import pytest
from clock import go

from mirg_jax.chat.asking import Asking, GivenUp, Line, Pace, Stopped
from mirg_jax.chat.client import Retry


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


def outcome(answered):
    """Sends requests one by one, of which some are never answered.

    Returns:
      How many were given up, and why the others are not sent.
    """

    async def main():
        asking, line, given_up = Asking(concurrency=1, retries=2, backoff=1), Line("a", Pace(0)), []
        for is_answered in answered:

            async def once(is_answered=is_answered):
                if not is_answered:
                    raise Retry("HTTP 500")
                return "yes"

            try:
                await asking.ask(line, once, given_up.append)
            except GivenUp:
                pass
            except Stopped:
                break
        asking.settle(line)
        return len(given_up), asking.stopped

    return go(main())


def test_some_failures_in_a_row_are_no_outage():
    assert outcome(([True] * 20 + [False] * 9) * 5) == (45, "")
    count, why = outcome([True, False, True] + [False] * 12)
    assert count == 1 and "the last 10 requests got no answer, 2 before them did" in why
    count, why = outcome([False] * 4)
    assert count == 0 and "no request got an answer (the reason: HTTP 500)" in why
