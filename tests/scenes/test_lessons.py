"""What the small base is taught: conversations that are right, and heads told where to look."""

import jax
import numpy as np
import pytest
from transformers import AutoTokenizer

from mirg_jax.grounding.grammar import parse_response
from mirg_jax.scenes.drawing import choose_looks, place
from mirg_jax.scenes.lessons import batches, losses
from mirg_jax.scenes.lessons.patterns import PATTERNS, Annotator
from mirg_jax.scenes.lessons.pictures import PATCHES, draw_picture
from mirg_jax.scenes.lessons.turns import look_up_in_list, single_image


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [draw_picture(rng) for _ in range(40)]


def answer_of(turn):
    """The object of a turn's answer, which must be one of those its thoughts list."""
    parsed = parse_response(turn.given + turn.learned)
    assert parsed.format_ok and len(parsed.objects) == 1
    (answer,) = parsed.objects
    listed = [o for o in parsed.mentions if (o.image, o.number) == (answer.image, answer.number)]
    assert [o.box for o in listed] == [answer.box]
    return listed[0]


def test_look_ups_answer_with_a_listed_thing():
    rng = np.random.default_rng(1)
    for _ in range(300):
        turn = look_up_in_list(rng)
        answer = answer_of(turn)
        asked = turn.question.partition("<|object_ref_start|>")[2].partition("<|object_ref_end|>")[
            0
        ]
        assert asked in ("", answer.label)


def test_single_images_answer_from_the_picture():
    rng = np.random.default_rng(2)
    for _ in range(200):
        scenes = [place(rng, choose_looks(rng, 2)) for _ in range(2)]
        for turn in single_image(rng, scenes, first=2):
            answer = answer_of(turn)
            assert answer.box in [thing.box for thing in scenes[answer.image - 2]]


def test_a_head_is_told_to_look_back_and_at_the_right_token(tokenizer, pictures):
    rng, annotate = np.random.default_rng(3), Annotator(tokenizer)
    copied = 0
    for n in range(60):
        chosen = [pictures[i] for i in rng.integers(len(pictures), size=n % 3)]
        talk = batches._converse(rng, tokenizer, annotate, chosen)
        tokens = talk.item.encoded.tokens
        for name, queries, keys in zip(PATTERNS, *talk.codes, strict=True):
            for t in np.flatnonzero(queries):
                sources = np.flatnonzero(keys[: t + 1] == queries[t])
                if name not in ("like", "first_thing", "second_thing"):  # may find nothing
                    assert len(sources), (name, tokenizer.decode(tokens[: t + 1]))
                if name == "previous":
                    assert sources.tolist() == [t - 1]
                if name == "copy_box":  # where the token stands that is to be written next
                    assert tokens[t + 1] == tokens[sources[0]]
                    copied += 1
    assert copied > 200


def test_batches_depend_on_seed_and_number_alone(tokenizer, pictures):
    def take(steps):
        return list(batches.batches(tokenizer, pictures, seed=4, rows=3, steps=steps))

    two, three = take(2), take(3)
    for a, b in zip(two, three[:2], strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)
    for batch in three:
        assert batch.labels.shape == batch.text.tokens.shape == (3, batches.LENGTH)
        assert not (batch.labels & (batch.text.segments == 0)).any()
        assert (batch.codes.queries[(batch.text.segments == 0)[:, None].repeat(12, 1)] == 0).all()


def test_labels_of_pictures_cover_their_things(pictures):
    for picture in pictures:
        covered = picture.seen.covers
        assert covered.shape == (PATCHES, 2)
        assert covered.any(axis=0).tolist() == [i < len(picture.things) for i in range(2)]
        bins = picture.seen.bins[: len(picture.things)]
        assert (bins == np.array([t.box for t in picture.things]) // 20).all()


def test_a_probe_that_knows_everything_has_no_loss(pictures):
    picture = pictures[0]
    seen = type(picture.seen)(*(np.asarray(x)[None, None] for x in picture.seen))
    width = losses.PROBE_OUTPUTS
    right = np.zeros((2, width // 2), np.float32)
    for m in range(2):
        right[m, 1 + picture.seen.colour[m]] = right[m, 7 + picture.seen.shape[m]] = 40
        for i, bin_ in enumerate(picture.seen.bins[m]):
            right[m, 12 + i * losses.BINS + bin_] = 40
    features = np.broadcast_to(right.reshape(-1), (1, 1, PATCHES, width)).copy()
    features[..., [0, width // 2]] = np.where(picture.seen.covers, 40, -40)
    real = np.ones((1, 1), bool)
    loss, near = losses.probe_loss(
        np.eye(width, dtype=np.float32), features, seen.covers, real, seen
    )
    assert float(loss) < 1e-5 and float(near) == 1
    loss, near = losses.probe_loss(
        -np.eye(width, dtype=np.float32), features, seen.covers, real, seen
    )
    assert float(loss) > 10 and float(near) < 0.5
