"""Rewards against plain Python in float64."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirg_jax.data.answers import answer_arrays, target_arrays, why_unusable
from mirg_jax.data.examples import Example, Target
from mirg_jax.rl import rewards
from mirg_jax.rl.rewards import Answers, Targets

iou = jax.jit(rewards.iou)
object_reward = jax.jit(rewards.object_reward)
image_reward = jax.jit(rewards.image_reward)
COORDINATES = st.lists(st.integers(0, 1000), min_size=4, max_size=4)


def iou_by_counting(a, b) -> float:
    """IoU of integer boxes by counting unit cells."""

    def cells(box):
        return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}

    a, b = cells(a), cells(b)
    return len(a & b) / len(a | b) if a and b else 0.0


def greedy(answers, targets, more=0):
    """The matching in plain Python: best pair first, by IoU + right image; `more` can't match."""
    left_a, left_t = dict(enumerate(answers)), dict(enumerate(targets))
    pairs = []
    while left_a and left_t:

        def merit(pair):
            (box, image), (true_box, true_image) = left_a[pair[0]], left_t[pair[1]]
            return iou64(box, true_box) + float(image == true_image or true_image == 0)

        i, j = max(itertools.product(left_a, left_t), key=merit)
        (box, image), (true_box, true_image) = left_a.pop(i), left_t.pop(j)
        pairs.append((iou64(box, true_box), float(image == true_image or true_image == 0)))
    count = max(len(answers) + more, len(targets), 1)
    return sum(p[0] for p in pairs) / count, sum(p[1] for p in pairs) / count


def iou64(a, b) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    if width <= 0 or height <= 0:
        return 0.0
    area = lambda box: max(box[2] - box[0], 0) * max(box[3] - box[1], 0)  # noqa: E731
    if not area(a) or not area(b):
        return 0.0
    return width * height / (area(a) + area(b) - width * height)


def arrays(objects, size=4):
    boxes, images, valid = np.zeros((size, 4)), np.zeros(size, int), np.zeros(size, bool)
    for i, (box, image) in enumerate(objects):
        boxes[i], images[i], valid[i] = box, image, True
    return boxes, images, valid


def make(answers, targets, format_ok=True, more=0):
    a, t = arrays(answers), arrays(targets)
    counts = {"count": len(answers) + more, "mentions": 0, "placed": 0}
    made = Answers(*a, format_ok, lengths=9, **counts), Targets(*t)
    return jax.tree.map(jnp.asarray, made)


@given(st.lists(st.integers(0, 12), min_size=8, max_size=8))
@settings(max_examples=200, deadline=None)
def test_iou_counts_cells(values):
    a, b = values[:4], values[4:]
    assert float(iou(jnp.array(a, float), jnp.array(b, float))) == pytest.approx(
        iou_by_counting(a, b), abs=1e-6
    )


@given(COORDINATES, COORDINATES)
@settings(max_examples=200, deadline=None)
def test_iou_matches_float64(a, b):
    found = iou(jnp.array(a) / 1000.0, jnp.array(b) / 1000.0)
    assert float(found) == pytest.approx(iou64(a, b), abs=2e-5)
    assert 0 <= float(found) <= 1.0001


def random_objects(rng, fewest):
    """Up to four boxes with images; drawn coarsely, so that some coincide."""
    count = rng.integers(fewest, 5)
    corners = np.concatenate([rng.integers(0, 5, (count, 2)), rng.integers(5, 10, (count, 2))], 1)
    return [(tuple(box / 9), int(rng.integers(1, 4))) for box in corners]


def test_several_objects_are_matched_one_to_one():
    rng = np.random.default_rng(0)
    cases = []
    for _ in range(400):
        answers, targets = random_objects(rng, 0), random_objects(rng, 1)
        cases.append((answers, targets, int(len(answers) == 4) * int(rng.integers(0, 5))))
    assert 20 < sum(more > 0 for *_, more in cases) < 300  # answers of more boxes than arrays hold
    made = [make(answers, targets, more=more) for answers, targets, more in cases]
    answers, targets = jax.tree.map(lambda *x: jnp.stack(x), *made)
    found = object_reward(answers, targets) + image_reward(answers, targets)
    # Ties may pair differently; the sum that the policy is rewarded with may not.
    np.testing.assert_allclose(found, [sum(greedy(*case)) for case in cases], atol=1e-5)


def test_single_object_is_the_papers_rule():
    truth = ((0.1, 0.1, 0.5, 0.5), 2)
    a, t = make([((0.1, 0.1, 0.5, 0.3), 2)], [truth])
    assert float(object_reward(a, t)) == pytest.approx(0.5)
    assert float(image_reward(a, t)) == 1
    a, t = make([((0.1, 0.1, 0.5, 0.5), 1)], [truth])  # the right box in the wrong image
    assert float(object_reward(a, t)) == 1  # the paper's sum is not gated
    assert float(rewards.gated_object_reward(a, t)) == 0
    assert float(image_reward(a, t)) == 0


def test_no_answer_earns_nothing_and_extra_boxes_cost():
    truth = [((0.1, 0.1, 0.5, 0.5), 1)]
    a, t = make([], truth, format_ok=False)
    assert (
        float(rewards.total(rewards.resolve({"format": 1, "image": 1, "object": 1}), a, t)[0]) == 0
    )
    a, t = make(truth + [((0.6, 0.6, 0.9, 0.9), 1)], truth)
    assert float(object_reward(a, t)) == pytest.approx(0.5)


BOX = "<|box_start|>({},{}),({},{})<|box_end|>"


def parsed(count_right, count_wrong, targets, size=8):
    """The arrays of an answer of right boxes, then wrong ones, to a question of several targets."""
    true = [(10 * n, 0, 10 * n + 9, 900) for n in range(targets)]
    said = [*true[:count_right], *((0, 910 + n, 5, 990) for n in range(count_wrong))]
    text = "<think>t</think><answer>" + "".join(BOX.format(*box) for box in said) + "</answer>"
    example = Example("a", "region", ("a.png",), "Where?", tuple(Target(box, 1) for box in true))
    lengths = np.full((1, 1), 3)
    assert not why_unusable(example, size)
    made = answer_arrays([text], [example], lengths, size), target_arrays([example], 1, size)
    return *jax.tree.map(jnp.asarray, made), example


@pytest.mark.parametrize(
    ("right", "wrong", "targets", "reward"),
    [
        (8, 0, 8, 1),
        (7, 0, 8, 7 / 8),  # one too few
        (8, 1, 8, 8 / 9),  # one too many, behind the eight that the arrays hold
        (8, 50, 8, 8 / 58),
        (1, 1, 1, 1 / 2),
        (1, 30, 1, 1 / 31),
        (0, 30, 2, 0),
    ],
)
def test_boxes_beyond_the_arrays_are_counted(right, wrong, targets, reward):
    answers, truth, _ = parsed(right, wrong, targets)
    assert float(object_reward(answers, truth)[0, 0]) == pytest.approx(reward, abs=1e-5)
    gated = rewards.gated_object_reward(answers, truth)
    # The image is never named, so every image reward is 0.
    assert float(image_reward(answers, truth)[0, 0]) == float(gated[0, 0]) == 0
    named = answers._replace(images=jnp.ones_like(answers.images))
    said = right + wrong
    in_image = min(said, 8, targets) / max(said, targets)  # wherever the boxes are
    assert float(image_reward(named, truth)[0, 0]) == pytest.approx(in_image, abs=1e-5)
    assert float(rewards.gated_object_reward(named, truth)[0, 0]) == pytest.approx(reward, abs=1e-5)


def test_rows_of_more_targets_than_the_arrays_hold_are_refused():
    example = parsed(8, 0, 8)[2]
    assert "8 targets are more than grpo.max_objects=7" in why_unusable(example, 7)
    assert "no target" in why_unusable(dataclasses.replace(example, targets=()), 8)


def test_unknown_target_image_accepts_any():
    a, t = make([((0.1, 0.1, 0.5, 0.5), 3)], [((0.1, 0.1, 0.5, 0.5), 0)])
    assert float(image_reward(a, t)) == 1


def test_batched_equals_single():
    rng = np.random.default_rng(0)
    boxes = np.sort(rng.random((3, 5, 4, 2, 2)), axis=-2).reshape(3, 5, 4, 4)
    images, valid = rng.integers(1, 4, (3, 5, 4)), rng.random((3, 5, 4)) < 0.7
    answers = Answers(
        *map(jnp.array, (boxes, images, valid)),
        jnp.ones((3, 5), bool),
        jnp.ones((3, 5), int),
        jnp.array(valid.sum(-1)),
        *jnp.zeros((2, 3, 5), int),
    )
    targets = Targets(*map(jnp.array, (boxes[:, ::-1], images[:, ::-1], valid[:, ::-1])))
    together = object_reward(answers, targets)
    for i, j in np.ndindex(3, 5):
        one = object_reward(*jax.tree.map(lambda x, at=(i, j): x[at], (answers, targets)))
        assert float(one) == pytest.approx(float(together[i, j]), abs=1e-6)


def brevity(answers, targets):
    """A reward of a user's own."""
    return (answers.lengths < 10).astype(jnp.float32)


def test_a_users_own_reward_by_name():
    own = rewards.resolve({"format": 1.0, "test_rewards:brevity": 0.5})
    a, t = make([], [((0, 0, 1, 1), 1)])
    total, parts = rewards.total(own, a, t)
    assert float(total) == 1.5 and set(parts) == {"format", "test_rewards:brevity"}


@pytest.mark.parametrize("name", ["fromat", "no_such_module:f", "math:no_such_function", ""])
def test_unknown_rewards_are_named(name):
    with pytest.raises(ValueError, match="rewards"):
        rewards.resolve({name: 1.0})
