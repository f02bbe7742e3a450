"""Rewards by name against plain Python in float64, and functions of a user's own from files."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirg_jax import defaults
from mirg_jax.data.answers import answer_arrays
from mirg_jax.data.examples import Example, Target
from mirg_jax.errors import ConfigError
from mirg_jax.rl import overlaps, rewards
from mirg_jax.rl.rewards import Answers, RewardOptions, Targets
from mirg_jax.runs.settings import read

OPTIONS = RewardOptions(max_tokens=20, overlong_buffer=0.25, iou_thresholds=(0.3, 0.7))
NAMES = list(rewards.named_rewards(OPTIONS))
every_reward = jax.jit(
    lambda *given: {
        name: reward(*given)
        for name, (reward, _) in rewards.resolve(
            dict.fromkeys([*NAMES, *(f"{name}_if_format" for name in NAMES)], 1.0), OPTIONS
        ).items()
    }
)


@jax.jit
def every_measure(a, b):
    return {
        "iou": overlaps.iou(a, b),
        "giou": overlaps.giou(a, b),
        "ciou": overlaps.ciou(a, b),
        "bounded": overlaps.bounded_iou(a, b, thresholds=(0.3, 0.7)),
    }


def area(box):
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def measures(a, b) -> dict[str, float]:
    """The measures of two boxes in plain Python; 0 if either is none."""
    if min(a[2] - a[0], a[3] - a[1], b[2] - b[0], b[3] - b[1]) <= 0:
        return dict.fromkeys(("iou", "giou", "ciou", "bounded"), 0.0)
    corners = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    shared = area(corners)
    union = area(a) + area(b) - shared
    iou = shared / union
    around = min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])
    giou = iou - (area(around) - union) / area(around)
    centre = lambda box: ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)  # noqa: E731
    apart = math.dist(centre(a), centre(b)) / math.dist(around[:2], around[2:])
    shape = lambda box: math.atan((box[2] - box[0]) / (box[3] - box[1]))  # noqa: E731
    v = 4 / math.pi**2 * (shape(a) - shape(b)) ** 2
    ciou = iou - apart**2 - (v**2 / (1 - iou + v) if v else 0)
    bounded = 1.0 if iou >= 0.7 else 0.0 if iou < 0.3 else iou
    return {"iou": iou, "giou": (1 + giou) / 2, "ciou": max(1 + ciou, 0) / 2, "bounded": bounded}


BOX = st.lists(st.integers(0, 40), min_size=4, max_size=4)


@given(st.lists(st.tuples(BOX, BOX), min_size=64, max_size=64))
@settings(max_examples=10, deadline=None)
def test_measures_of_boxes_match_float64(pairs):
    pairs = [*pairs, *((a, a) for a, _ in pairs)]
    a, b = (np.array(boxes, np.float32) / 40 for boxes in zip(*pairs, strict=True))
    wanted = [measures(*pair) for pair in zip(*map(np.float64, (a, b)), strict=True)]
    for name, values in every_measure(a, b).items():
        expected = np.array([row[name] for row in wanted])
        far = np.ones(len(expected), bool)
        if name == "bounded":  # at a threshold rounding may decide
            ious = np.array([row["iou"] for row in wanted])
            far = np.abs(ious[:, None] - [0.3, 0.7]).min(1) > 1e-6
        np.testing.assert_allclose(np.asarray(values)[far], expected[far], atol=2e-6, err_msg=name)
        assert (np.asarray(values) >= 0).all() and (np.asarray(values) <= 1 + 1e-6).all()


def drawn(rng, rows=40, group=4, size=3):
    """Answers and targets of up to three boxes, some of them right, and some beyond the arrays."""

    def objects(fewest):
        low = rng.random((rows, group, size, 2))  # so finely that no two pairs score the same
        boxes = np.concatenate([low, low + rng.uniform(0.1, 1, low.shape)], -1) / 2
        count = rng.integers(fewest, size + 1, (rows, group))
        return boxes.astype(np.float32), count, np.arange(size) < count[..., None]

    (said, count, valid), (true, _, asked) = objects(0), objects(1)
    said = np.where(rng.random((rows, group, size, 1)) < 0.5, true, said)
    more = np.where(count == size, rng.integers(0, 3, count.shape), 0)
    mentions = rng.integers(0, 4, (rows, group))
    answers = Answers(
        said,
        rng.integers(1, 3, valid.shape),
        valid,
        rng.random((rows, group)) < 0.7,
        rng.integers(1, 21, (rows, group)),
        count + more,
        mentions,
        np.minimum(mentions, rng.integers(0, 4, (rows, group))),
    )
    return answers, Targets(true, rng.integers(1, 3, valid.shape), asked)


def pairs(answers, targets, at, name):
    """Measure and right image of each matched pair: the best first, by their sum."""
    left = [np.flatnonzero(x.valid[at]) for x in (answers, targets)]
    left, found = [list(map(int, x)) for x in left], []

    def score(pair):
        i, j = pair
        value = measures(answers.boxes[at][i].astype(float), targets.boxes[at][j].astype(float))
        return value[name] + (answers.images[at][i] == targets.images[at][j])

    while left[0] and left[1]:
        best = max(itertools.product(*left), key=score)
        right = float(answers.images[at][best[0]] == targets.images[at][best[1]])
        found.append((score(best) - right, right))
        left[0].remove(best[0])
        left[1].remove(best[1])
    return found


def test_rewards_of_several_boxes_match_float64():
    answers, targets = drawn(np.random.default_rng(0))
    found = {name: np.asarray(x) for name, x in every_reward(answers, targets).items()}
    for at in np.ndindex(answers.count.shape):
        most = max(answers.count[at], targets.valid[at].sum())
        for measure in ("giou", "ciou"):
            matched = pairs(answers, targets, at, measure)
            wanted = sum(value for value, _ in matched) / most
            assert found[f"object_{measure}"][at] == pytest.approx(wanted, abs=1e-5)
            gated = sum(value * image for value, image in matched) / most
            assert found[f"object_{measure}_gated"][at] == pytest.approx(gated, abs=1e-5)
    for name in NAMES:
        kept = np.where(answers.format_ok, found[name], 0)
        np.testing.assert_allclose(found[f"{name}_if_format"], kept, atol=1e-6)
    assert (found["object_bounded_gated"] != found["object_bounded"]).any()


def test_f1_counts_hits_among_boxes_and_targets():
    f1 = jax.jit(rewards.f1_reward)
    box, far = [0.0, 0.0, 0.5, 0.5], [0.6, 0.6, 0.9, 0.9]
    near = [0.0, 0.0, 0.5, 0.3]  # an IoU of 0.6
    cases = [([box], [box], 1.0), ([near, far], [box], 2 / 3), ([far], [box, far], 2 / 3)]
    cases += [([], [box], 0.0), ([far, far, near], [box], 2 / 4)]
    for said, true, wanted in cases:
        made = arrays(said), arrays(true)
        answers = Answers(*made[0], True, 9, len(said), 0, 0)
        made = jax.tree.map(np.asarray, (answers, Targets(*made[1])))
        assert float(f1(*made)) == pytest.approx(wanted), (said, true)


def arrays(boxes, size=3):
    held = np.zeros((size, 4), np.float32)
    held[: len(boxes)] = np.reshape(boxes, (-1, 4))
    return held, np.ones(size, int), np.arange(size) < len(boxes)


def test_rewards_of_lengths_and_thoughts_match_float64():
    answers, targets = drawn(np.random.default_rng(1))
    found = every_reward(answers, targets)
    lengths = answers.lengths.astype(float)
    start, cache = 15.0, 5.0  # of 20 tokens the last quarter
    wanted = np.where(lengths <= start, 0, (start - lengths) / cache)
    np.testing.assert_allclose(found["overlong"], wanted, atol=1e-6)
    assert wanted.min() == -1
    named = [
        p / m if m else 0 for p, m in zip(answers.placed.flat, answers.mentions.flat, strict=True)
    ]
    np.testing.assert_allclose(np.ravel(found["thoughts_image"]), named, atol=1e-6)

    right = 0
    for row in range(len(lengths)):
        low, high = lengths[row].min(), lengths[row].max()
        for g in range(lengths.shape[1]):
            at = row, g
            share = 0.5 - (lengths[at] - low) / (high - low) if high > low else 0.0
            whole = np.asarray(found["object_f1"])[at] == 1
            right += whole
            expected = share if whole else min(share, 0.0)
            assert float(found["length"][at]) == pytest.approx(expected, abs=1e-6)
    assert right > 5


def test_the_thoughts_objects_are_counted_with_their_images():
    box = "<|box_start|>(1,2),(30,40)<|box_end|>"
    said = f"<think><bbox_id>[2-1]</bbox_id>{box} and {box}, <bbox_id>[9-1]</bbox_id>{box}</think>"
    text = said + f"<answer>{box}</answer>"
    example = Example("a", "region", ("a.png", "b.png"), "Where?", (Target((0, 0, 9, 9), 1),))
    found = answer_arrays([text, "nothing"], [example], np.full((1, 2), 3), 2)
    np.testing.assert_array_equal(found.mentions, [[3, 0]])
    np.testing.assert_array_equal(found.placed, [[1, 0]])


FILE = """
import jax.numpy as jnp
def brevity(answers, targets):
    return answers.lengths < 10
def shapeless(answers, targets):
    return jnp.zeros(3)
def broken(answers, targets):
    return answers.no_such_field
number = 5
"""


def test_a_users_own_reward_from_a_file(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/own.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    config = defaults.grpo()
    config.grpo.more_rewards = (
        "mine/own.py:brevity=0.5",
        f"{tmp_path}/mine/own.py:brevity",
        "overlong=2",
    )
    grpo = read(config).grpo
    assert list(grpo.rewards.values()) == [1.0, 1.0, 1.0, 0.5, 1.0, 2.0]
    answers, targets = drawn(np.random.default_rng(2))
    total, parts = rewards.total(rewards.resolve({"mine/own.py:brevity": 0.5}), answers, targets)
    np.testing.assert_array_equal(total, 0.5 * (answers.lengths < 10))
    assert parts["mine/own.py:brevity"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("objekt", "none of format, image, object, object_gated, .*path/to/file.py:function"),
        ("mine/none.py:f", "there is no file mine/none.py"),
        ("mine/own.py:f", "'f' is not there in mine/own.py"),
        ("mine/own.py:number", "'number' is no function"),
        ("mine/bad.py:f", "can't be loaded: SyntaxError"),
        ("no_such_module:f", "not an importable module:function: ModuleNotFoundError"),
        ("mine/own.py:shapeless", r"returns float32\[3\]; return one real number"),
        ("mine/own.py:broken", "fails with AttributeError: .*no_such_field"),
    ],
)
def test_what_is_wrong_with_a_reward_is_said_in_one_line(name, message, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/own.py").write_text(FILE)
    (tmp_path / "mine/bad.py").write_text("def f(:")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        functions = rewards.resolve({name: 1.0})
        jax.eval_shape(lambda: rewards.total(functions, *rewards.nothing_said((2, 4), 3)))
    assert len(str(caught.value).splitlines()) == 1 and repr(name) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"more_rewards": ("image=much",)}, "'image=much' has no number behind '='"),
        ({"more_rewards": ("length", "length=2")}, "'length' is given twice"),
        ({"more_rewards": ("imgae=1",)}, "'imgae' is none of"),
        ({"more_rewards": ("image=nan",)}, "must be finite"),
        ({"overlong_buffer": 0.0}, "grpo.overlong_buffer=0 must be above 0"),
        ({"iou_thresholds": (0.9, 0.1)}, "two numbers from 0 to 1, ascending"),
        ({"iou_thresholds": (0.5,)}, "two numbers"),
    ],
)
def test_settings_of_rewards_are_checked(changes, message):
    config = defaults.grpo()
    config.grpo.update(changes)
    with pytest.raises(ConfigError, match=message):
        read(config)


def test_a_run_with_a_reward_that_is_gone_can_be_read():
    """As for an evaluation of the model that it trained, on another machine."""
    config = defaults.grpo()
    config.grpo.more_rewards = ("gone/with_the_machine.py:f",)
    assert "gone/with_the_machine.py:f" in read(config).grpo.rewards
