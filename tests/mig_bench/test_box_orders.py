"""What a box's numbers mean by the words of a response."""

import pytest
from bench_rows import file_row, rows_of

from mirg_jax.mig_bench import families
from mirg_jax.mig_bench.box_forms import find_boxes

CORNERS = (12, 30, 200, 300)
# The same box in other orders.
ORDERS = {"BOX": "[12, 30, 200, 300]", "SIZED": "[12, 30, 188, 270]", "ROWS": "[30, 12, 300, 200]"}
ORDERS["CENTRED"] = "[106, 165, 188, 270]"


def read(text):
    for name, box in ORDERS.items():
        text = text.replace(name, box)
    return find_boxes(text)


@pytest.mark.parametrize(
    "text",
    [
        "bbox (xywh): SIZED",
        '"bbox (xywh)": SIZED',
        "**bbox (xyxy):** BOX",
        "bbox_xywh: SIZED",
        "bbox_xywh = 12, 30, 188, 270",
        "bbox_xyxy: 12, 30, 200, 300",
        "COCO format [x, y, w, h]: SIZED",
        "Here is the box in COCO format: SIZED",
        "SIZED (COCO format: x, y, width, height)",
        "Answer (COCO): SIZED",
        "In YOLO format: CENTRED",
        "Box (Pascal VOC): BOX",
        "SIZED (in xywh format)",
        "The format is xywh. SIZED",
        "ROWS  # y1, x1, y2, x2",
        '{"bbox": ROWS} // ymin, xmin, ymax, xmax',
        "# x, y, w, h\nSIZED",
        "ROWS (y1, x1, y2, x2)",
        "y1, x1, y2, x2 = 30, 12, 300, 200",
        "The coordinates in the order ymin, xmin, ymax, xmax are ROWS.",
        "x1,y1,w,h: SIZED",
        "top, left, bottom, right: 30, 12, 300, 200",
        "(x, y, w, h): <box>SIZED</box>",
        # What an order is not, or no longer, says nothing.
        "The box isn't in COCO format: BOX",
        "(not xywh) BOX",
        "Converting from COCO format to corners: BOX",
        "Dogs are common in COCO: BOX",
        "You asked for [x1, y1, x2, y2], here as [y1, x1, y2, x2]: ROWS",
    ],
)
def test_an_order_in_words(text):
    assert [(box.corners, box.is_clear) for box in read(text)] == [(CORNERS, True)]


@pytest.mark.parametrize(
    "text",
    [
        "bbox (xywh): SIZED\nbbox (xyxy): BOX",
        "xyxy: BOX, xywh: SIZED",
        "BOX (xyxy), SIZED (xywh)",
        "[x, y, w, h]: SIZED; [x1, y1, x2, y2]: BOX",
        "[x, y, w, h] = SIZED, that is [y1, x1, y2, x2] = ROWS",
        '{"bbox": SIZED, "format": "xywh"}, {"bbox": BOX, "format": "xyxy"}',
        '{"format": "xywh", "bbox": SIZED}, {"format": "xyxy", "bbox": BOX}',
        "SIZED (x, y, w, h)\nBOX (x1, y1, x2, y2)",
    ],
)
def test_each_box_has_its_own_order(text):
    assert [(box.corners, box.is_clear) for box in read(text)] == [(CORNERS, True)] * 2


@pytest.mark.parametrize(
    "text",
    [
        "[x, y, w, h] and [x1, y1, x2, y2], whatever you like: BOX",
        "You asked for [x1, y1, x2, y2]. I prefer [y1, x1, y2, x2]. Here: BOX",
        "[x, y, w, h]: BOX (x1, y1, x2, y2)",
    ],
)
def test_a_box_of_two_orders_is_unclear_and_is_not_read(text):
    (box,) = read(text)
    (item,) = rows_of([file_row(question="Where is it in the second image?")])
    said = [text.replace("BOX", ORDERS["BOX"])]
    found = families.read_responses(families.FAMILIES["qwen2_vl"], [item], said)
    assert not box.is_clear and "in two ways" in found.unreadable[item.index]
