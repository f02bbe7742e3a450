"""The forms of a box in responses, and lists of numbers that are none."""

import pytest

from mirg_jax.mig_bench.box_forms import find_boxes, has_box

CORNERS = (12, 30, 200, 300)


@pytest.mark.parametrize(
    "text",
    [
        "(12,30),(200,300)",
        "[12, 30, 200, 300]",
        "<box>12 30 200 300</box>",
        '{"bbox_2d": "[12, 30, 200, 300]"}',
        '{"bbox_2d": [ [12, 30, 200, 300] ]}',
        '{"bbox_2d": "12,30,200,300"}',
        "{'bbox': '12 30 200 300'}",
        "bbox: 12, 30, 200, 300",
        "**Bounding box:** 12, 30, 200, 300",
        "12, 30, 200, 300",
        "<think>1, 2, 3</think>12, 30, 200, 300<|im_end|>",
        "<answer>12,30,200,300</answer>",
        "[[12, 30], [200, 300]]",
        "[12 30 200 300]",
        '{"x1": 12, "y1": 30, "x2": 200, "y2": 300, "label": "dog"}',
        '{"width": 640, "height": 480, "x1": 12, "y1": 30, "x2": 200, "y2": 300}',
        '{"x_min": 12.0, "y_min": 30, "x_max": 200, "y_max": 300}',
        '{"ymin": 30, "xmin": 12, "ymax": 300, "xmax": 200}',
        '{"left": "12", "top": "30", "right": "200", "bottom": "300"}',
        '{"x": 12, "y": 30, "width": 188, "height": 270}',
        '{"confidence": 0.9, "x": 12, "y": 30, "w": 188, "h": 270}',
        '{"cx": 106, "cy": 165, "w": 188, "h": 270}',
        "left=12, top=30, right=200, bottom=300",
        "<xmin>12</xmin>\n<ymin>30</ymin>\n<xmax>200</xmax>\n<ymax>300</ymax>",
        '<box x1="12" y1="30" x2="200" y2="300"/>',
        '"top_left": [12, 30], "bottom_right": [200, 300]',
        '{"bbox_xywh": [12, 30, 188, 270]}',
        '{"box_cxcywh": [106, 165, 188, 270]}',
        '{"yxyx": [30, 12, 300, 200]}',
        '{"images": [1, 2, 3, 4], "bbox": [12, 30, 200, 300]}',
        "<box>12,30,200,300</box>",
        "<bbox>12 30 200 300</bbox>",
        "<|box_start|>12,30,200,300<|box_end|>",
        '{"bbox_2d": ["12", "30", "200", "300"]}',
        "(12, 30) - (200, 300)",
        '{"width": 640, "height": 480, "x": 12, "y": 30, "w": 188, "h": 270}',
        '{"box_2d": [12, 30, 200, 300], "format": "xyxy"}',
        '{"bbox": [12, 30, 188, 270], "bbox_mode": "XYWH"}',
        "The top-left corner is (12, 30) and the bottom-right corner is (200, 300).",
        # Other orders, by a key or in words.
        '{"box_2d": [30, 12, 300, 200], "label": "dog"}',
        '{"bbox": [12, 30, 188, 270], "format": "xywh"}',
        '{"bbox_format": "cxcywh", "bbox": [106, 165, 188, 270]}',
        "Bounding box (x, y, width, height): [12, 30, 188, 270]",
        "[y_min, x_min, y_max, x_max] = [30, 12, 300, 200]",
        "Format [y1, x1, y2, x2]: [30, 12, 300, 200]",
        "(x1, y1, x2, y2): (12, 30, 200, 300)",
        # Tags, and Gemini's name of a box in prose.
        "<box_2d>[30, 12, 300, 200]</box_2d>",
        "<box_2d>30, 12, 300, 200</box_2d>",
        "<bbox_2d> [12, 30, 200, 300] </bbox_2d>",
        "The box_2d is [30, 12, 300, 200].",
        "In it the `box_2d` of the dog is `[30, 12, 300, 200]`.",
        "box_2d of the dog: [30, 12, 300, 200]",
        "The bbox_2d is [12, 30, 200, 300].",
        "The box_2d is [12, 30, 200, 300] (x1, y1, x2, y2).",
        # Corners and sides by bold names and in lists.
        "**Top-left:** (12, 30) **Bottom-right:** (200, 300)",
        "- **Top-left corner**: (12, 30)\n- **Bottom-right corner**: (200, 300)",
        "**Top-left (x1, y1):** (12, 30), **Bottom-right (x2, y2):** (200, 300)",
        "**Bottom-right:** [200, 300] **Top-left:** [12, 30]",
        "Upper right (200, 30) and lower left (12, 300)",
        "- **x1:** 12\n- **y1:** 30\n- **x2:** 200\n- **y2:** 300",
        "* **Left**: 12\n* **Top**: 30\n* **Width**: 188\n* **Height**: 270",
    ],
)
def test_forms(text):
    assert [box.corners for box in find_boxes(text)] == [CORNERS]
    assert has_box(text)


@pytest.mark.parametrize(
    "text",
    [
        "images (1, 2, 3, 4)",
        '"images": [1,2,3,4]',
        "objects (1, 2, 3, 4)",
        "objects 1, 2, 3, 4",
        '{"imageIds": [10, 20, 30, 40]}',
        "Frames [2, 5, 8, 11]",
        "'frames': [10, 20, 30, 40]",
        "the dogs [1, 2, 3, 4]",
        "steps: (2, 3, 5, 7)",
        "图片(1,2,3,4)",
        '{"scores": [0.9, 0.8, 0.7, 0.1]}',
        '{"color": [255, 0, 0, 255]}',
        "[[1,2],[3,4],[5,6],[7,8]]",
        "bbox: 1, 2, 3, 4, 5",
        "[(120, 45), (340, 45), (340, 510), (120, 510)]",
        "It moved from (10, 20) to (30, 40).",
        '{"image_size": [640, 480, 3, 1]}',
        '{"segmentation": [[1, 2, 30, 4]]}',
        'The plate reads "12 34 56 78".',
        "1, 2, 3, 4 and 5",
        '{"x": 1, "y": 2, "z": 3, "w": 4}',
        '{"x1": 1, "y1": 2, "x2": 3, "label": 4}',
        "Top-left: (1, 2), top-right: (3, 2), bottom-right: (3, 4), bottom-left: (1, 4)",
        "",
    ],
)
def test_other_numbers(text):
    assert find_boxes(text) == [] and not has_box(text)


@pytest.mark.parametrize(
    "text",
    [
        "boxes (1, 2, 3, 4)",
        "The dog is (1, 2, 3, 4)",
        "dogs [0, 0, 1, 1]",
        "images <box>[1, 2, 3, 4]</box>",
        "dogs [100, 200, 300, 400]",
    ],
)
def test_small_boxes(text):
    assert len(find_boxes(text)) == 1


def test_geminis_boxes_in_prose():
    found = find_boxes(
        "The box_2d is [30, 12, 300, 200], and that of the cat is [30, 12, 300, 200]."
    )
    assert [box.corners for box in found] == [CORNERS, CORNERS]
    found = find_boxes("The box_2d is [30, 12, 300, 200]. The pixel coords are [12, 30, 200, 300].")
    assert [box.corners for box in found] == [CORNERS, CORNERS]


def test_a_list_of_boxes_has_the_order_of_its_key():
    found = find_boxes('{"box_2d": [[30, 12, 300, 200], [30, 12, 300, 200]]}')
    assert [box.corners for box in found] == [CORNERS, CORNERS]
