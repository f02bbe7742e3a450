"""A step's batches are read and laid out while the step before is computed."""

import threading

import numpy as np
import pytest
from conftest import train

from mirg_jax.data import pipeline
from mirg_jax.errors import DataError
from mirg_jax.runs import metrics
from mirg_jax.training import loop
from mirg_jax.training.ahead import Ahead


def test_the_next_call_is_made_before_it_is_asked_for():
    numbers, begun = iter(range(3)), threading.Event()

    def make():
        begun.set()
        return next(numbers)

    ahead = Ahead(make)
    assert ahead.take() == 0
    begun.clear()
    ahead.begin()
    assert begun.wait(60)
    ahead.begin()  # one is under way
    assert [ahead.take(), ahead.take()] == [1, 2]
    with pytest.raises(StopIteration):
        ahead.take()


def test_what_does_not_come_is_not_waited_for():
    come = threading.Event()
    ahead = Ahead(lambda: come.wait(60))
    assert ahead.take(unless=lambda: True) is None
    come.set()
    assert ahead.take() is True


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_the_next_step_is_laid_out_during_a_step(kind, recipe, tmp_path, monkeypatch):
    """And no step more than the run has."""
    laid_out, steps = [threading.Event() for _ in range(9)], loop.Loop.steps
    collate, started = loop.Loop._lay_out, iter(laid_out)

    def lay_out(self, divide):
        found = collate(self, divide)
        assert threading.current_thread() is not threading.main_thread()
        next(started).set()
        return found

    def watched(self, divide):
        for batches in steps(self, divide):
            if batches.step < 2:  # this step's arrays are not used yet, the next one's come
                assert laid_out[batches.step + 1].wait(60)
            yield batches

    monkeypatch.setattr(loop.Loop, "_lay_out", lay_out)
    monkeypatch.setattr(loop.Loop, "steps", watched)
    train(recipe(kind, num_steps=3), tmp_path)
    assert sum(event.is_set() for event in laid_out) == 3
    assert [row["step"] for row in metrics.read(tmp_path)] == [1, 2, 3]


def test_what_is_laid_out_for_fewer_processes_is_laid_out_again(recipe, tmp_path, monkeypatch):
    """Where another process needs larger arrays, and one more of them."""
    seen, steps = [], loop.Loop.steps

    def larger(wanted):
        return [(length, slots + 1, patches) for length, slots, patches in wanted[0]] + [
            wanted[0][0]
        ]

    def watched(self, divide):
        for batches in steps(self, divide):
            seen.append(batches)
            yield batches

    train(recipe("sft", num_steps=2), tmp_path / "alone")
    monkeypatch.setattr(loop, "common_sizes", larger)
    monkeypatch.setattr(loop.Loop, "steps", watched)
    train(recipe("sft", num_steps=2), tmp_path / "beside")
    for batches in seen:
        *parts, empty = batches.parts
        assert not empty.examples and not empty.batch.labels.any()
        assert all(part.batch.images.patches.shape[1] == part.sizes[1] for part in parts)
        assert sum(part.batch.labels.sum() for part in parts) == batches.labels
    alone, beside = (metrics.read(tmp_path / name) for name in ("alone", "beside"))
    for one, other in zip(alone, beside, strict=True):
        np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-5)


def test_a_failure_to_read_ends_the_run_in_its_line(recipe, tmp_path, monkeypatch):
    def fail(root, path):
        raise DataError("no picture")

    monkeypatch.setattr(pipeline, "load_image", fail)
    with pytest.raises(DataError, match="no example can be used; the last: .*no picture"):
        train(recipe("sft", num_steps=2), tmp_path)
