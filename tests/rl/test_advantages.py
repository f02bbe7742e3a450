"""Ways to compute advantages against float64 NumPy, and the statistics of a step in parts."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mirg_jax import defaults, sharding
from mirg_jax.errors import ConfigError
from mirg_jax.rl import advantages
from mirg_jax.rl.rewards import Answers, Targets
from mirg_jax.runs.settings import read
from mirg_jax.training.grpo_programs import make_judge, make_step_scaling

WEIGHTS = {"format": 0.5, "image": 1.0, "object": 2.0}


def drawn(rows, group=5):
    """Answers and targets of one object; some groups are all alike."""
    rng = np.random.default_rng(rows)
    boxes = np.sort(rng.integers(0, 9, (2, rows, group, 1, 2, 2)) / 8, axis=-2)
    boxes = boxes.reshape(2, rows, group, 1, 4).astype(np.float32)
    boxes[0, 0] = boxes[1, 0] = boxes[0, 0, 0]
    images = rng.integers(1, 3, (rows, group, 1)).astype(np.int32)
    images[0] = 1
    ones = np.ones((rows, group), np.int32)
    right = rng.random((rows, group)) < 0.5
    right[0] = True
    answers = Answers(boxes[0], images, ones[..., None] > 0, right, ones, ones, ones, ones)
    return answers, Targets(boxes[1], np.ones_like(images), ones[..., None] > 0)


def sketch(parts, iou, scale, epsilon, weighted):
    """The advantages of a step from each reward, in float64."""
    parts = {name: np.asarray(part, np.float64) for name, part in parts.items()}
    total = sum(WEIGHTS[name] * part for name, part in parts.items())
    divide = lambda a, b: np.divide(a, b + epsilon, out=np.zeros_like(a), where=b + epsilon > 0)  # noqa: E731

    def centred(r):
        return r - r.mean(1, keepdims=True)

    if scale == "std":
        found = divide(centred(total), total.std(1, keepdims=True))
    elif scale == "none":
        found = centred(total)
    elif scale == "batch_std":
        found = divide(centred(total), total.std(keepdims=True))
    elif scale == "leave_one_out":
        others = [np.delete(total, i, axis=1).mean(1) for i in range(total.shape[1])]
        found = total - np.stack(others, axis=1)
    else:
        each = [
            WEIGHTS[name] * divide(centred(r), r.std(1, keepdims=True)) for name, r in parts.items()
        ]
        found = divide(sum(each) - sum(each).mean(), sum(each).std(keepdims=True))
    return found * np.exp(1 - np.asarray(iou, np.float64).mean(1, keepdims=True)) ** weighted


def options(**changes):
    config = defaults.grpo()
    config.grpo.update(rewards=WEIGHTS, **changes)
    return read(config).grpo


@pytest.mark.parametrize(
    ("scale", "weighted"), itertools.product(advantages.SCALES, (False, True)), ids=str
)
def test_advantages_of_a_step_in_parts_are_those_of_the_whole(scale, weighted):
    mesh = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])
    grpo = options(advantage_scale=scale, difficulty_weight=weighted)
    given = drawn(6)
    judge, complete = make_judge(grpo, mesh), make_step_scaling(grpo, mesh)
    assert (complete is None) == (scale not in advantages.OVER_STEP and not weighted)

    def judged(*bounds):
        rows = [slice(*bound) for bound in bounds]
        found = [judge(*jax.tree.map(lambda x, at=at: x[at], given)) for at in rows]
        done = complete(found) if complete else [part.advantages for part in found]
        assert [len(part) for part in done] == [b - a for a, b in bounds]
        return found, np.concatenate(done)

    (whole,), at_once = judged((0, 6))
    _, in_parts = judged((0, 2), (2, 4), (4, 6))
    parts = {name: whole.rewards[name] for name in WEIGHTS}
    wanted = sketch(parts, parts["object"], scale, 1e-4, weighted)
    np.testing.assert_allclose(at_once, wanted, atol=2e-5, rtol=2e-4)
    np.testing.assert_allclose(in_parts, wanted, atol=2e-5, rtol=2e-4)
    assert (at_once[0] == 0).all() and whole.zero_spread[0]
    assert (np.abs(wanted).max(1) > 1e-3).sum() >= 3


@pytest.mark.parametrize("scale", advantages.OVER_STEP)
def test_groups_that_are_not_used_count_in_no_statistics(scale):
    mesh = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])
    grpo = options(advantage_scale=scale)
    judge, complete = make_judge(grpo, mesh), make_step_scaling(grpo, mesh)
    whole, used = drawn(6), np.array([0, 1, 1, 0, 1, 1], bool)
    some = jax.tree.map(lambda x: x[used], whole)
    (found,) = complete([judge(*whole)], used)
    (wanted,) = complete([judge(*some)])
    np.testing.assert_allclose(np.asarray(found)[used], wanted, rtol=1e-5, atol=1e-6)
    assert not np.allclose(complete([judge(*whole)])[0][used], wanted, rtol=1e-3)


REWARD = arrays(np.float32, (3, 4), elements=st.sampled_from([0.0, 0.1, 0.5, 1.0, 1.1]))


@given(REWARD, REWARD, st.sampled_from(advantages.SCALES), st.sampled_from([0.0, 1e-4]))
@settings(max_examples=100, deadline=None)
def test_no_rewards_make_nan_and_equal_ones_teach_nothing(first, second, scale, epsilon):
    found, idle = jax.tree.map(np.asarray, compared(first, second, scale, epsilon))
    assert np.isfinite(found).all() and (found[idle] == 0).all()


@functools.partial(jax.jit, static_argnums=(2, 3))
def compared(first, second, scale, epsilon):
    """Advantages of two rewards, and the groups in which no completion stands out."""
    total = first - 0.5 * second
    idle = advantages.zero_spread(total)
    if scale == "gdpo":
        parts, weights = {"a": first, "b": second}, {"a": 1.0, "b": -0.5}
        found = advantages.decoupled_advantages(parts, weights, epsilon=epsilon)
        idle = advantages.zero_spread(first) & advantages.zero_spread(second)
    else:
        within = "none" if scale == "batch_std" else scale
        found = advantages.group_advantages(total, scale=within, epsilon=epsilon)
    if scale in advantages.OVER_STEP:
        found = advantages.scale_over_step(found, total, scale=scale, epsilon=epsilon)
    return found, idle


def test_gdpo_tells_apart_what_the_sum_does_not():
    """Completions of equal sums differ if the rewards that they earn are not equally common."""
    parts = {"a": jnp.array([[1.0, 0, 0, 0]]), "b": jnp.array([[0.0, 1, 1, 1]])}
    assert (advantages.group_advantages(parts["a"] + parts["b"]) == 0).all()
    found = advantages.decoupled_advantages(parts, {"a": 1.0, "b": 2.0}, epsilon=0.0)
    assert found[0, 0] < found[0, 1]


def test_unknown_scales_are_refused_with_the_choices():
    with pytest.raises(ConfigError, match="std, none, batch_std, leave_one_out, gdpo"):
        options(advantage_scale="median")
    with pytest.raises(ValueError, match="none of batch_std, gdpo"):
        advantages.scale_over_step(jnp.ones((1, 2)), jnp.ones((1, 2)), scale="std", epsilon=0.0)
