"""Boxes of responses: the authors' patterns against an independent reading, and answer blocks."""

import random

import pytest
from authors_rule import qwen, reference_box

from mirg_jax.grounding import grammar
from mirg_jax.mig_bench import parsing

# The authors' patterns ----------------------------------------------------------------------------


def test_authors_parse_equals_the_independent_reading_on_broken_text():
    rng = random.Random(1)
    pieces = [
        "(",
        ")",
        "[",
        "]",
        ",",
        ", ",
        " ",
        "<box>",
        "</box>",
        "1",
        "0",
        "0.5",
        "1.0",
        ".",
        "7",
    ]
    pieces += ["(1,2),(30,40)", "[0.1, 0.2,0.3,1.0]", "[5,6, 7,800]", "<box>1  2\t3 4</box>", "٣"]
    found = 0
    for _ in range(5000):
        text = "".join(rng.choices(pieces, k=rng.randint(1, 12)))
        box, _ = reference_box(text)
        assert parsing.parse_authors(text) == (tuple(box) if box else None), text
        found += box is not None
    assert 1000 < found < 4900


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("(0,1),(999,1000)", (0, 0.001, 0.999, 1.0)),
        ("(0,1),(999,1000)(5,5),(6,6)", (0, 1, 0.999, 1.0)),  # among several, 1 stays 1
        ("[0.5, 0.25, 1.0, 0.75]", (0.5, 0.25, 0.001, 0.75)),
        ("<box>[[10, 20, 30, 40]]</box>", (0.01, 0.02, 0.03, 0.04)),
        ("<box>10 20 30 40</box>", (0.01, 0.02, 0.03, 0.04)),
        ("[1,2,3,4] (500,600),(700,800)", (0.5, 0.6, 0.7, 0.8)),  # the order of the patterns
        ("(0.1, 0.2),(0.3, 0.4)", None),
        ("(-1,2),(3,4)", None),
        ("10 20 30 40", None),
    ],
)
def test_authors_parse(text, box):
    assert parsing.parse_authors(text) == box


def test_migician_scaling_is_left_out_when_there_are_several_boxes():
    text = "(100,200),(300,400)"
    assert parsing.parse_authors(text, scale_y=True) == (0.1, 0.21, 0.3, 0.44)
    assert parsing.parse_authors(text + text, scale_y=True) == (0.1, 0.2, 0.3, 0.4)
    assert parsing.parse_authors("(1,980),(3,990)", scale_y=True)[1::2] == (0.999, 0.999)


# The answer protocol ------------------------------------------------------------------------------

THOUGHT = "I see <bbox_id>[1-1]</bbox_id><|object_ref_start|>a dog<|object_ref_end|>"
THOUGHT += "<|box_start|>(1,2),(3,4)<|box_end|>."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            grammar.format_response(
                THOUGHT, "<bbox_id>[2-1]</bbox_id><|box_start|>(100,200),(500,600)<|box_end|>"
            ),
            ((0.1, 0.2, 0.5, 0.6), 2, True),
        ),
        (
            grammar.format_response(THOUGHT, "<bbox_id>[1-1]</bbox_id>"),
            ((0.001, 0.002, 0.003, 0.004), 1, True),
        ),
        (grammar.format_response(THOUGHT, "nowhere"), (None, None, False)),
        (f"<think>{THOUGHT}</think>", (None, None, False)),
        (
            f"<think>{THOUGHT}</think>It's in the second image. " + qwen((100, 200, 500, 600)),
            ((0.1, 0.2, 0.5, 0.6), 2, False),
        ),
        ("<|box_start|>(100,200),(500,600)<|box_end|>", ((0.1, 0.2, 0.5, 0.6), None, False)),
        ("", (None, None, False)),
    ],
)
def test_answer_parse(text, expected):
    assert parsing.parse_answer(text, num_images=3) == expected
