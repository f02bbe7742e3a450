"""Formatting and parsing are inverses, and no text breaks the parser."""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirg_jax.grounding import grammar
from mirg_jax.grounding.boxes import is_valid
from mirg_jax.grounding.grammar import (
    GroundedObject,
    find_image_index,
    find_objects,
    format_answer,
    format_id,
    format_object,
    format_response,
    parse_response,
)

DOG = GroundedObject((100, 200, 300, 400), 1, 1, "the dog")
TWIN = GroundedObject((5, 6, 700, 800), 2, 1, "its twin")
BOX = "<|box_start|>(316,58),(764,999)<|box_end|>"
TOKENS = [value for name, value in vars(grammar).items() if name.endswith(("_START", "_END"))]


def respond(thinking, answer):
    return parse_response(format_response(thinking, answer), 3)


# Round trip ---------------------------------------------------------------------------------------

sides = st.lists(st.integers(0, 1000), min_size=2, max_size=2, unique=True).map(sorted)
boxes = st.tuples(sides, sides).map(lambda xy: (xy[0][0], xy[1][0], xy[0][1], xy[1][1]))
labels = st.text(st.characters(codec="utf-8"), max_size=24).map(str.strip)
labels = labels.filter(lambda label: not any(token in label for token in TOKENS))
objects = st.builds(GroundedObject, boxes, st.integers(1, 9), st.integers(1, 9), labels)
unnamed = st.builds(GroundedObject, boxes, label=labels)


def unique(found):
    return len({(obj.image, obj.number) for obj in found}) == len(found)


@given(st.lists(objects, max_size=6).filter(unique), st.lists(objects, min_size=1, max_size=4))
def test_objects_come_back(mentions, answer):
    thinking = "".join(f"There is {format_object(obj)}, as asked. " for obj in mentions)
    response = parse_response(format_response(thinking, format_answer(answer)) + "<|im_end|>", 9)
    assert response.thinking == thinking
    assert response.answer == format_answer(answer)
    assert response.mentions == tuple(mentions)
    assert response.objects == tuple(answer)
    assert response.format_ok
    assert response.problems == ()


@given(st.lists(unnamed, min_size=1, max_size=4))
def test_objects_without_an_image_come_back(answer):
    assert find_objects(format_answer(answer), 3) == (tuple(answer), ())


def test_the_format_is_the_papers():
    assert format_object(GroundedObject((1, 2, 3, 4), 2, 5, "a cup")) == (
        "<bbox_id>[2-5]</bbox_id><|object_ref_start|>a cup<|object_ref_end|>"
        "<|box_start|>(1,2),(3,4)<|box_end|>"
    )
    assert format_response("t", "a") == "<think>t</think><answer>a</answer>"


@pytest.mark.parametrize(
    "obj",
    [
        GroundedObject((3, 0, 2, 9)),
        GroundedObject((0, 0, 10, 1001)),
        GroundedObject((0, 0, 1, 1), label="a <|box_end|> b"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(obj):
    with pytest.raises(ValueError):
        format_object(obj)


# What an answer means -----------------------------------------------------------------------------


def test_an_id_alone_is_the_object_of_the_thoughts():
    thinking = f"I see {format_object(DOG)} and {format_object(TWIN)}; [2-1] is wanted."
    response = respond(thinking, f"It is {format_id(2, 1)}.")
    assert response.objects == (TWIN,)
    assert response.format_ok


def test_an_id_is_re_used_in_the_thoughts_without_a_second_mention():
    response = respond(f"{format_object(DOG)} ... {format_id(1, 1)} is a dog.", format_object(DOG))
    assert response.mentions == (DOG,)
    assert response.problems == ()


def test_an_id_repeated_after_its_box_is_one_object():
    response = respond("", f"{format_object(DOG)}, that is {format_id(1, 1)}")
    assert response.objects == (DOG,)


def test_an_id_of_nothing():
    response = respond("no boxes here", format_id(2, 7))
    assert response.objects == ()
    assert not response.format_ok
    assert any("[2-7]" in problem for problem in response.problems)


def test_an_id_belongs_to_the_box_right_after_it():
    response = respond(
        format_object(DOG), f"{format_id(1, 1)} is like {format_id(2, 3)}: {BOX} and {BOX}"
    )
    found = [(obj.image, obj.number) for obj in response.objects]
    assert found == [(1, 1), (2, 3), (None, None)]


def test_boxes_of_the_thoughts_are_not_the_answer():
    response = respond(format_object(DOG), format_object(TWIN))
    assert response.objects == (TWIN,)
    cut = "<think>I see " + format_object(DOG)
    assert parse_response(cut, 3).objects == ()
    assert parse_response(cut, 3).mentions == (DOG,)
    assert parse_response(cut + "</think>" + format_object(TWIN), 3).objects == (TWIN,)
    assert parse_response(cut + "<answer>" + format_object(TWIN), 3).objects == (TWIN,)
    guess = f"perhaps <answer>{format_object(DOG)}</answer>?"
    assert respond(guess, format_object(TWIN)).objects == (TWIN,)


def test_the_think_tag_may_be_in_the_prompt():
    response = parse_response(f"{format_object(DOG)}</think><answer>{format_object(TWIN)}", 3)
    assert (response.mentions, response.objects) == ((DOG,), (TWIN,))


@pytest.mark.parametrize(
    ("words", "image"),
    [
        ("It's in the third image. ", 3),
        ("It is in the SECOND image. ", 2),
        ("in the 3rd image ", 3),
        ("in the 2th image: ", 2),
        ("Image-2: ", 2),
        ("image 1 ", 1),
        ("not in the first image but in the second image ", 2),
        ("in the last image ", 3),
        ("Here it is: ", None),
        ("in the ninth image ", None),
        ("Image-0 ", None),
        ("imagery 2 ", None),
    ],
)
def test_wording_tells_the_image(words, image):
    plain = parse_response(words + BOX + "<|im_end|>\n", 3)
    assert [obj.image for obj in plain.objects] == [image]
    assert [obj.box for obj in plain.objects] == [(316, 58, 764, 999)]
    assert not plain.format_ok
    assert plain.thinking is plain.answer is None

    response = respond("", words + BOX)
    assert [obj.image for obj in response.objects] == [image]
    assert response.format_ok == ("ninth" not in words and "-0" not in words)


def test_wording_holds_until_the_next():
    text = f"In the first image {BOX} and {BOX}, in image-3 {BOX}; {format_id(2, 1)}{BOX}."
    assert [obj.image for obj in find_objects(text, 3)[0]] == [1, 1, 3, 2]


def test_wording_of_questions():
    tracked = "the object in the first image (red box), please locate it in the 6th image."
    assert find_image_index(tracked, 6) == 6
    assert find_image_index(tracked, 5) is None
    assert find_image_index("where does the object in image-1 locate in the image-2.", 2) == 2
    assert find_image_index("locate the 2th region picture in the source image.", 4) == 1
    assert find_image_index("in the last image") is None
    assert find_image_index("Compare these two images", 2) is None


def test_a_label_before_a_full_stop_is_the_next_boxs():
    text = f"It is <|object_ref_start|>a bowl<|object_ref_end|>. {BOX}"
    assert find_objects(text, 2)[0] == (GroundedObject((316, 58, 764, 999), label="a bowl"),)


# Format and problems ------------------------------------------------------------------------------

GOOD = format_response("hm", BOX)


@pytest.mark.parametrize(
    ("text", "ok"),
    [
        (GOOD, True),
        (f"  {GOOD}\n<|im_end|>\n<|endoftext|>", True),
        (GOOD.replace("</think>", "</think>\n\n"), True),
        (GOOD + " done", False),
        ("Sure! " + GOOD, False),
        (GOOD.replace("</think>", "</think> so "), False),
        (GOOD + GOOD, False),
        (GOOD.replace("<think>", ""), False),
        (GOOD.replace("</answer>", ""), False),
        (f"<answer>{BOX}</answer><think>hm</think>", False),
        (f"<think>a<think>b</think></think><answer>{BOX}</answer>", False),
        (format_response("hm", "no box"), False),
        (format_response(BOX, "no box"), False),
        (format_response("hm", format_id(4, 1) + BOX), False),
        (format_response("hm", format_id(0, 1) + BOX), False),
        (format_response(format_id(4, 1) + BOX, BOX), False),
        (format_response("hm", format_id(3, 1) + BOX), True),
        ("", False),
        ("<|im_end|>", False),
    ],
)
def test_format(text, ok):
    response = parse_response(text, 3)
    assert response.format_ok is ok
    assert ok or response.problems


def test_without_the_number_of_images_any_image_is_fine():
    assert parse_response(format_response("hm", format_id(44, 1) + BOX)).format_ok


@pytest.mark.parametrize(
    "box",
    [
        "(300,400),(100,200)",
        "(1,2),(1,4)",
        "(0,0),(1001,10)",
        "(-1,0),(10,10)",
        f"(0,0),(10,{'9' * 5000})",
        "(0.1,0.2),(0.3,0.4)",
        "(1,2)",
        "",
    ],
)
def test_bad_boxes_are_named_and_left_out(box):
    bad = f"<|box_start|>{box}<|box_end|>"
    response = respond("hm", bad + BOX)
    assert [obj.box for obj in response.objects] == [(316, 58, 764, 999)]
    assert response.format_ok
    (problem,) = response.problems
    assert box[:20] in problem and len(problem) < 120

    assert not respond("hm", bad).format_ok


# Any text -----------------------------------------------------------------------------------------

FRAGMENTS = [
    *TOKENS,
    "<|im_end|>",
    "<|endoftext|>",
    "[1-1]",
    "[2-1]",
    "[9-0]",
    "(1,2),(3,4)",
    "(900,2),(3,4)",
    "(١,٢),(٣,٤)",
    BOX,
    "the third image",
    "image-2",
    "last picture ",
    "(",
    "<",
    "\n",
    "dog",
]


def check(text, num_images):
    """What holds of every response."""
    response = parse_response(text, num_images)
    for obj in (*response.mentions, *response.objects):
        assert is_valid(obj.box)
        assert obj.image is None or 1 <= obj.image <= (num_images or 9999)
        assert obj.number is None or obj.number >= 1
    if response.format_ok:
        assert response.objects
        assert text.count("<think>") == text.count("</answer>") == 1
    else:
        assert response.problems
    return response


texts = st.one_of(
    st.text(), st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text())).map("".join)
)


@settings(max_examples=400, deadline=None)
@given(texts, st.sampled_from([None, 1, 3]))
def test_no_text_raises(text, num_images):
    check(text, num_images)
    find_objects(text, num_images)
    find_image_index(text, num_images)


def test_no_mutation_raises():
    rng = random.Random(0)
    sound = [
        format_response(f"See {format_object(DOG)}.", f"{format_id(1, 1)} {format_object(TWIN)}"),
        format_response("It's in the third image.", f"third image {BOX}") + "<|im_end|>",
        f"It's in the third image. {BOX}",
    ]
    assert [check(text, 3).format_ok for text in sound] == [True, True, False]
    broken = 0
    for _ in range(100_000):
        text = rng.choice(sound)
        for _ in range(rng.randint(1, 3)):
            start = rng.randrange(len(text) + 1)
            end = min(len(text), start + rng.choice((0, 1, 1, 5, 30)))
            text = text[:start] + rng.choice(("", "", "9", *FRAGMENTS)) + text[end:]
        broken += not check(text, 3).format_ok
    assert 50_000 < broken < 100_000


@pytest.mark.parametrize(
    "unit",
    [
        *FRAGMENTS,
        " ",
        "1",
        "first ",
        "image ",
        "<|box_start|>(",
        "<|box_start|>(1,",
        "<bbox_id>[1-1]</bbox_id>",
        "<think></think>",
        "<answer></answer>",
    ],
)
@pytest.mark.parametrize("frame", ["{}", "<think>{}", "<think>hm</think><answer>{}</answer>"])
def test_long_texts_take_linear_time(unit, frame):
    """A quadratic parser takes minutes here, this one hundredths of a second."""
    text = frame.format(unit * (200_000 // len(unit)))
    start = time.process_time()
    check(text, 3)
    check(text + "x", 3)
    assert time.process_time() - start < 20
