"""The budget, by the clock of an event loop that skips its waits."""

import asyncio

import pytest
from clock import go

from mirg_jax.trajectories.limits import Budget, CapReached


def test_a_budget_waits_for_reservations_and_then_stops():
    async def main():
        spent = [0.0]
        budget = Budget(1.0, lambda: spent[0])
        order = []

        async def one(name, most, cost, seconds):
            try:
                async with budget.reserve(most):
                    order.append(name)
                    await asyncio.sleep(seconds)
                    spent[0] += cost
            except CapReached:
                order.append(f"no {name}")

        await asyncio.gather(
            one("a", 0.6, 0.1, 3), one("b", 0.6, 0.3, 1), one("c", 0.7, 0.0, 1), one("d", 2, 2, 1)
        )
        return order, spent[0]

    # b needs what a has reserved, and c what b has; d needs more than there is.
    order, spent = go(main())
    assert order[:2] == ["a", "b"] and set(order[2:]) == {"no c", "no d"}
    assert spent == pytest.approx(0.4)


def test_no_cap_is_no_limit():
    async def main():
        budget = Budget(0.0, lambda: 10.0**6)
        async with budget.reserve(10.0**6):
            return True

    assert go(main())
