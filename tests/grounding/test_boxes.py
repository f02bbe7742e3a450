"""Conversions against values by hand, and overlap against counting grid cells."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirg_jax.grounding import boxes

coordinates = st.integers(-5, 1005)


@given(st.tuples(coordinates, coordinates, coordinates, coordinates))
def test_valid_means_on_the_grid_with_an_area(box):
    x1, y1, x2, y2 = box
    expected = x1 in range(x2) and y1 in range(y2) and x2 in range(1001) and y2 in range(1001)
    assert boxes.is_valid(box) is expected


def test_nan_is_not_valid():
    assert not boxes.is_valid((0, math.nan, 10, 10))


@given(st.tuples(*[st.integers(0, 1000)] * 4))
def test_fractions_and_back(box):
    assert boxes.fraction_to_grid(boxes.grid_to_fraction(box)) == box


def test_fractions_are_rounded_and_clipped():
    assert boxes.fraction_to_grid((-0.2, 0.1234, 0.9996, 1.048)) == (0, 123, 1000, 1000)
    with pytest.raises(ValueError):
        boxes.fraction_to_grid((math.nan, 0, 1, 1))


def test_pixels():
    assert boxes.grid_to_pixels((100, 200, 500, 1000), width=640, height=480) == (64, 96, 320, 480)


def test_iou_counts_cells():
    rng = np.random.default_rng(0)
    corners = np.sort(rng.integers(0, 13, (200, 2, 2)), axis=1).reshape(200, 4)
    corners = corners[(corners[:, 0] < corners[:, 2]) & (corners[:, 1] < corners[:, 3])]

    def cells(box):
        x1, y1, x2, y2 = box
        return {(x, y) for x in range(x1, x2) for y in range(y1, y2)}

    found = boxes.iou(corners[:, None], corners[None])
    expected = [
        [len(cells(a) & cells(b)) / len(cells(a) | cells(b)) for b in corners] for a in corners
    ]
    assert found.shape == (len(corners), len(corners))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_boxes_without_area_overlap_nothing():
    good, inverted, empty = (0, 0, 10, 10), (8, 8, 2, 2), (5, 5, 5, 9)
    found = boxes.iou(good, np.array([good, inverted, empty]))
    np.testing.assert_array_equal(found, [1.0, 0.0, 0.0])
    assert boxes.iou(inverted, inverted) == 0.0
