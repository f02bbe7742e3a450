"""A learner with a TPU's kernel, interpreted, beside the plain sampler."""

import functools

import numpy as np
from conftest import train

from mirg_jax.models import flash
from mirg_jax.runs import engines, metrics
from mirg_jax.training.speed import MOST_DIFFERENT


def test_bfloat16_by_splash_learns_what_was_sampled(recipe, tmp_path, monkeypatch, capsys):
    calls, interpreted = [], functools.partial(flash.splash_attention, interpret=True)

    def splash(*arrays):
        calls.append(arrays[-1])
        return interpreted(*arrays)

    monkeypatch.setitem(flash.ENGINES, "splash", splash)
    monkeypatch.setattr(engines, "_problem", lambda *_: "")
    changes = {"model.attention": "splash", "model.compute_dtype": "bfloat16"}
    train(recipe("grpo", num_steps=1, **changes), tmp_path)
    (row,) = metrics.read(tmp_path)
    assert 1e-6 < row["logprob_diff"] < MOST_DIFFERENT
    assert np.isfinite([row["loss"], row["grad_norm"]]).all()
    # Images (a row each), prompts, and the completions' branches: all by the kernel.
    assert {(p.causal, p.branches > 1) for p in calls} >= {
        (False, False),
        (True, False),
        (True, True),
    }
    assert "log-probabilities differ" not in capsys.readouterr().err
