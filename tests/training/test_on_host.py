"""Moments that are kept in the host's memory between updates."""

import jax
import pytest
import together
from conftest import train

from mirg_jax.training import optimizer


@pytest.mark.parametrize("kind", ["sft", pytest.param("grpo", marks=pytest.mark.slow)])
def test_moments_on_the_host_change_no_number(kind, steady_recipe, tmp_path, monkeypatch):
    """Over several devices, and from one place to the other on resuming."""
    where, make = [], optimizer.make_update

    def note(*args):
        update = make(*args)

        def noted(state, grads, loss):
            where.append({leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.opt_state)})
            return update(state, grads, loss)

        return noted

    monkeypatch.setattr(optimizer, "make_update", note)
    kinds, apply = [], optimizer.make_apply

    def end(*args):
        applied = apply(*args)

        def ended(state, grads, loss):
            state, norm = applied(state, grads, loss)
            kinds.append({leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.opt_state)})
            return state, norm

        return ended

    for module in ("sft", "grpo"):
        monkeypatch.setattr(f"mirg_jax.training.{module}.make_apply", end)

    def run(folder, steps, on_host):
        changes = {"optimizer.on_host": on_host, "checkpoint.keep": 9}
        train(steady_recipe(kind, num_steps=steps, **changes), tmp_path / folder)
        return together.scalars(tmp_path / folder)

    whole = run("devices", 4, False)
    assert kinds == where == [{"device"}] * 4
    kinds.clear()
    assert run("host", 4, True) == whole
    # The count of updates is a number of its own, which stays where it is.
    assert kinds == [{"pinned_host", "device"}] * 4
    run("moves", 1, False)
    run("moves", 3, True)
    assert run("moves", 4, False) == whole
    assert where == [{"device"}] * 12
