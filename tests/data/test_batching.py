"""Packing and collating: nothing lost or doubled, no limit passed, every image in its place."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirg_jax.data.batching import Item, Shapes, collate, collate_prompts, pack, patch_positions
from mirg_jax.data.images import ImagePatches
from mirg_jax.data.prompts import Encoded, mrope_positions
from mirg_jax.errors import DataError

SHAPES = Shapes(lengths=(32, 64, 96), slots=(2, 3, 5), patches=(4, 16, 64))
IMAGE = 7  # the image token; words are 100 and above


def make_item(rng, grids, texts, response, first_word=100):
    """An item with images of `grids` (in visual tokens), `texts[i]` words before image i."""
    tokens, starts, images = [], [], []
    words = itertools.count(first_word)
    for (rows, columns), count in zip(grids, texts, strict=True):
        tokens += itertools.islice(words, count)
        starts.append(len(tokens))
        tokens += [IMAGE] * (rows * columns)
        patches = rng.integers(0, 256, (4 * rows * columns, 588), dtype=np.uint8)
        images.append(ImagePatches(patches, (2 * rows, 2 * columns)))
    prompt_length = len(tokens) + 1
    tokens = np.array([*tokens, *itertools.islice(words, 1 + response)], np.int32)
    positions = mrope_positions(tokens, grids, IMAGE)
    return Item(Encoded(tokens, positions, tuple(starts), prompt_length), tuple(images))


@st.composite
def item_lists(draw):
    """Items that fit the limits; each word and patch is met once, so none can be confused."""
    rng, items = np.random.default_rng(0), []
    for number in range(draw(st.integers(0, 12))):
        count = draw(st.integers(0, 5))
        side = st.integers(1, 4)
        grids = [(draw(side), draw(side)) for _ in range(count)]
        texts = [draw(st.integers(1, 3)) for _ in range(count)]
        item = make_item(rng, grids, texts, draw(st.integers(0, 10)), 100 * (number + 1))
        if len(item.encoded.tokens) <= SHAPES.lengths[-1]:
            items.append(item)
    return items


def load(items, row):
    return (
        sum(len(items[i].encoded.tokens) for i in row),
        sum(len(items[i].images) for i in row),
    )


@settings(deadline=None, max_examples=60, derandomize=True)
@given(item_lists())
def test_pack(items):
    rows = pack(items, SHAPES)
    assert sorted(itertools.chain(*rows)) == list(range(len(items)))  # each once
    loads = [load(items, row) for row in rows]
    assert all(t <= SHAPES.lengths[-1] and s <= SHAPES.slots[-1] for t, s in loads)
    for (t1, s1), (t2, s2) in itertools.combinations(loads, 2):  # no two rows could be one
        assert t1 + t2 > SHAPES.lengths[-1] or s1 + s2 > SHAPES.slots[-1]
    assert pack(items, SHAPES) == rows


@settings(deadline=None, max_examples=60, derandomize=True)
@given(item_lists(), st.integers(0, 2))
def test_collate(items, empty_rows):
    rows = pack(items, SHAPES) + [[]] * empty_rows
    text, images, labels = batch = collate(items, rows, SHAPES)

    B, T = text.tokens.shape
    S, P = images.positions.shape[1:3]
    assert B == len(rows)
    assert T in SHAPES.lengths and S in SHAPES.slots and P in SHAPES.patches
    # No larger than it must be.
    loads = [load(items, row) for row in rows]
    patches = [len(image.patches) for item in items for image in item.images]
    for sizes, size, needed in (
        (SHAPES.lengths, T, max((t for t, _ in loads), default=0)),
        (SHAPES.slots, S, max((s for _, s in loads), default=0)),
        (SHAPES.patches, P, max(patches, default=0)),
    ):
        assert size == min(s for s in sizes if s >= needed)
    assert images.patches.dtype == np.uint8
    assert all(a.dtype == np.int32 for a in (*text, images.positions)) and labels.dtype == bool

    for b, row in enumerate(rows):
        # The tokens of the row's items, one after another, then padding.
        used, _ = load(items, row)
        assert (text.segments[b, :used] > 0).all() and (text.segments[b, used:] == 0).all()
        assert not labels[b, used:].any() and (text.visual_index[b, used:] == -1).all()
        seen_slots = []
        for segment, index in enumerate(row, start=1):
            encoded, item_images = items[index]
            (where,) = np.nonzero(text.segments[b] == segment)
            np.testing.assert_array_equal(where, np.arange(where[0], where[-1] + 1))
            np.testing.assert_array_equal(text.tokens[b, where], encoded.tokens)
            np.testing.assert_array_equal(text.positions[b, where], encoded.positions)
            learned = np.arange(len(where)) >= encoded.prompt_length
            np.testing.assert_array_equal(labels[b, where], learned)
            # Every image token, and no other, finds its own four patches.
            visual = text.visual_index[b, where]
            np.testing.assert_array_equal(visual >= 0, encoded.tokens == IMAGE)
            found = images.patches[b].reshape(S * P // 4, 4, 588)[visual[visual >= 0]]
            expected = [image.patches.reshape(-1, 4, 588) for image in item_images]
            if expected:
                np.testing.assert_array_equal(found, np.concatenate(expected))
            slots = list(dict.fromkeys((visual[visual >= 0] // (P // 4)).tolist()))
            assert len(slots) == len(item_images)
            for slot, image in zip(slots, item_images, strict=True):
                count = len(image.patches)
                at = images.positions[b, slot]
                np.testing.assert_array_equal(at[:count], patch_positions(image.grid))
                assert (at[count:] == -1).all()
            seen_slots += slots
        assert seen_slots == list(range(len(seen_slots)))  # a slot each
        assert (images.positions[b, len(seen_slots) :] == -1).all()
    total = sum(len(item.encoded.tokens) for item in items)
    assert (batch.text.segments > 0).sum() == total


@settings(deadline=None, max_examples=60, derandomize=True)
@given(item_lists())
def test_collate_prompts_keeps_a_prompt_a_row(items):
    batch = collate_prompts(items, SHAPES, size=len(items) + 2)
    assert batch.text.segments.max(initial=0) <= 1
    lengths = [len(item.encoded.tokens) for item in items]
    assert (batch.text.segments > 0).sum(axis=1).tolist() == [*lengths, 0, 0]


def test_pack_takes_the_longest_first():
    rng = np.random.default_rng(0)
    items = [make_item(rng, (), (), size - 1) for size in (10, 60, 40, 30, 50)]
    assert pack(items, SHAPES) == [[1, 3], [4, 2], [0]]


def test_no_slots_left():
    """Three short items of two images each don't fit five slots."""
    rng = np.random.default_rng(0)
    items = [make_item(rng, [(1, 1)] * 2, [1, 1], 0) for _ in range(3)]
    assert pack(items, SHAPES) == [[0, 1], [2]]


@pytest.mark.parametrize(
    "grids, response, message",
    [
        (
            [],
            96,
            r"97 tokens are more than the limit of 96; .*lengths or shorten the row's text",
        ),
        (
            [(1, 1)] * 6,
            0,
            r"6 images are more than the limit of 5; .*slots or leave the row out",
        ),
        ([(1, 17)], 0, r"68 patches in an image are more than the limit of 64; .*max_pixels"),
    ],
)
def test_examples_that_do_not_fit_are_refused(grids, response, message):
    rng = np.random.default_rng(0)
    item = make_item(rng, grids, [1] * len(grids), response)
    with pytest.raises(DataError, match=message):
        SHAPES.check(*item)
    SHAPES.check(*make_item(rng, [(4, 4)] * 5, [1] * 5, 10))  # 96 tokens, five images: just fits


def test_patch_positions_go_block_by_block():
    expected = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3)]
    expected += [(row + 2, column) for row, column in expected]
    assert patch_positions((4, 4)).tolist() == [list(where) for where in expected]
    assert patch_positions((2, 4)).tolist() == [list(where) for where in expected[:8]]
