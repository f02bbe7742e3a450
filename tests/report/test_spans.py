"""Objects of a text, found as the grammar finds them, and nothing of the text lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirg_jax.grounding import grammar
from mirg_jax.grounding.grammar import GroundedObject
from mirg_jax.report import spans
from mirg_jax.report.spans import Piece, Place

A, B = (0, 100, 500, 1000), (20, 20, 40, 40)
SIDES = {A: (0, 0.1, 0.5, 1), B: (0.02, 0.02, 0.04, 0.04)}


def name(text):
    return f"<|object_ref_start|>{text}<|object_ref_end|>"


def box(sides):
    return grammar.format_box(sides)


def whole(pieces):
    """The text that pieces came from."""
    return "".join(
        piece if isinstance(piece, str) else piece.content.join(spans.TOKENS[piece.kind])
        for piece in pieces
    )


def objects(text, **options):
    """For every part of an object, its content and its object's number."""
    found = spans.read(text, 3, **options)
    assert whole(found.pieces) == text
    return [(piece.content, piece.object) for piece in found.pieces if isinstance(piece, Piece)]


def test_an_id_and_its_box_are_one_object_wherever_they_are_named():
    first, second = grammar.format_id(1, 1), grammar.format_id(2, 1)
    text = (
        f"<think>A {first}{name('dog')}{box(A)} and a {second}, {name('cat')} {box(B)}. Look: "
        f"{name('dog')}{first}.</think><answer>{second}{box(B)}</answer>"
    )
    a, b = "(0,100),(500,1000)", "(20,20),(40,40)"
    assert objects(text) == [
        ("[1-1]", 0), ("dog", 0), (a, 0), ("[2-1]", 1), ("cat", 1), (b, 1),
        ("dog", 0), ("[1-1]", 0), ("[2-1]", 1), (b, 1),
    ]  # fmt: skip
    found = spans.read(text, 3)
    assert found.names == ["dog", "cat"]
    assert found.places == [Place(0, 1, SIDES[A]), Place(1, 2, SIDES[B])]


def test_boxes_without_an_id_lie_where_the_wording_says():
    text = f"In the third image {box(A)}, in image 2 {name('cat')}{box(B)}, image 9 {box(B)}"
    found = spans.read(text, 3, image=2)
    assert [place.image for place in found.places] == [3, 2]  # the third is the second again
    assert found.names == ["", "cat"]
    assert spans.read(box(A), 3, image=2).places == [Place(0, 2, SIDES[A])]


def test_an_object_of_an_image_that_is_not_there_has_no_place():
    text = f"{grammar.format_id(9, 1)}{name('dog')}{box(A)}, {grammar.format_id(2, 1)}{box(A)}"
    found = spans.read(text, 3, image=2)
    assert found.names == ["dog", ""] and found.places == [Place(1, 2, SIDES[A])]
    assert [number for _, number in objects(text)] == [0, 0, 0, 1, 1]


def test_parts_that_belong_to_nothing_have_no_object():
    text = f"{name('a dog')} runs, <|box_start|>(9,9),(1,1)<|box_end|> <bbox_id>x</bbox_id> end"
    assert [number for _, number in objects(text)] == [-1, -1, -1]
    text = f"{grammar.format_id(1, 2)} is there, {box(A)}"  # words between: not its box
    assert [number for _, number in objects(text)] == [0, 1]


def test_objects_that_are_known_need_no_box_in_the_text():
    known = GroundedObject(A, 2, 1, "dog")
    found = spans.read(f"See {grammar.format_id(2, 1)}.", 3, objects=[known])
    assert found.names == ["dog"] and found.places == [Place(0, 2, SIDES[A])]
    assert found.pieces[1].object == 0


def test_boxes_are_those_that_the_grammar_finds():
    text = f"<think>{grammar.format_id(3, 1)}{name('x')}{box(A)} then image 2: {box(B)}</think>"
    expected = [(o.image, tuple(v / 1000 for v in o.box)) for o in grammar.find_objects(text, 3)[0]]
    assert [(place.image, place.box) for place in spans.read(text, 3).places] == expected


TOKENS = [token for pair in spans.TOKENS.values() for token in pair]


@given(st.lists(st.sampled_from([*TOKENS, "[1-1]", "[2-9]", "(1,2),(3,4)", "dog", "<", ", "])))
def test_no_text_is_lost(parts):
    objects("".join(parts))


@pytest.mark.parametrize("part", ["<bbox_id>", "<bbox_id>[1-1]</bbox_id>", "a<", box(A)])
def test_long_texts_take_linear_time(part):
    found = spans.read(part * 20_000, 3)
    assert len(found.places) <= 20_000
