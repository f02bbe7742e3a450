"""Answers of conversations with thoughts: targets are the answer's alone, and both are kept."""

import functools
import re

import pytest
from data_rows import BOX, chat, read_content

from mirg_jax.data.examples import Target
from mirg_jax.grounding.grammar import parse_response

WRONG = "<|box_start|>(1,2),(3,4)<|box_end|>"
TARGET = Target((10, 20, 300, 400), 2)
THOUGHTS = f"In the first image there is a cat {WRONG}."
ANSWER = f"In the second image: {BOX}"
WHOLE = f"<think>{THOUGHTS}</think><answer>{ANSWER}</answer>"
ASKED = ("user", "<image><image>Where is the dog?")


@pytest.fixture
def read(tmp_path):
    return functools.partial(read_content, tmp_path)


def answered(content, **fields):
    row = chat(ASKED)
    row["messages"].append({"role": "assistant", "content": content} | fields)
    return row


@pytest.mark.parametrize(
    "row, response",
    [
        (answered(WHOLE), WHOLE),
        (answered(WHOLE.replace("<answer>", "\n\n<answer>") + "\n"), None),
        (answered(f"{WHOLE}<|im_end|>\n"), WHOLE),
        (answered([{"type": "text", "text": WHOLE}]), WHOLE),
        (answered(f"<think>{THOUGHTS}</think>\n{ANSWER}"), WHOLE),
        (answered(f"{THOUGHTS}</think><answer>{ANSWER}</answer>"), WHOLE),
        (answered(ANSWER, reasoning_content=THOUGHTS), WHOLE),
        (answered(f"<answer>{ANSWER}</answer>", reasoning_content=THOUGHTS), WHOLE),
        (answered(ANSWER, reasoning=THOUGHTS), WHOLE),
        (answered(ANSWER, thinking=THOUGHTS, reasoning_content=f"{THOUGHTS}\n"), WHOLE),
        ({**answered(""), "messages": None, "query": ASKED[1], "response": WHOLE}, WHOLE),
    ],
)
def test_thoughts_and_answer_are_a_trajectory(read, row, response):
    (example,), rejected = read([row], "rows.jsonl")
    assert rejected == [] and example.targets == (TARGET,)
    if response:
        assert example.response == response
    parsed = parse_response(example.response, 2)
    assert parsed.format_ok and parsed.thinking.strip() == THOUGHTS
    assert [(each.box, each.image) for each in parsed.mentions] == [((1, 2, 3, 4), 1)]


@pytest.mark.parametrize(
    "row",
    [
        answered(f"<answer>{ANSWER}</answer>"),
        answered(f"It is {WRONG}: <answer>{ANSWER}</answer>"),
        answered(f"<think>\n\n</think>\n\n{ANSWER}"),
        answered(ANSWER, reasoning_content="", reasoning=None),
        answered(ANSWER, reasoning_content=" \n"),
    ],
)
def test_without_thoughts_there_is_no_trajectory(read, row):
    (example,), rejected = read([row])
    assert rejected == [] and example.targets == (TARGET,) and example.response is None


def test_an_answer_may_refer_to_a_box_of_the_thoughts(read):
    name = "<bbox_id>[2-1]</bbox_id>"
    text = f"<think>The dog {name}{BOX}.</think><answer>{name}</answer>"
    (example,), _ = read([answered(text)])
    assert example.targets == (TARGET,) and example.response == text


@pytest.mark.parametrize(
    "row, reason",
    [
        (answered(f"<think>{THOUGHTS}"), "blocks are not"),
        (answered(f"<think>{THOUGHTS}</think><answer>{ANSWER}"), "blocks are not"),
        (answered(WHOLE + WHOLE), "blocks are not"),
        (answered(f"<think>{THOUGHTS}</think>I don't know."), "no valid box"),
        (answered(f"<think>{THOUGHTS}</think><answer>none</answer>"), "no valid box"),
        (answered(f"<answer>none</answer>{BOX}"), "no box"),
        (answered(f"Well. {WHOLE}"), "text outside"),
        (answered(WHOLE.replace("(3,4)", "(3,1)")), "not a box on the grid: '(1,2),(3,1)'"),
        (answered(WHOLE, reasoning_content="hm"), "thoughts beside it and in it"),
        (answered(ANSWER, reasoning_content="a", reasoning="b"), "reasoning_content and reasoning"),
        (answered(ANSWER, reasoning_content=["a"]), "'reasoning_content' is a list"),
        (answered(ANSWER, reasoning_content="a <answer> b"), "blocks are not"),
    ],
)
def test_thoughts_that_are_unclear(read, row, reason):
    examples, (bad,) = read([row, answered(WHOLE)])
    assert len(examples) == 1 and reason in bad.reason


@pytest.mark.parametrize(
    "box, target",
    [
        ("(10.0,20.0),(300.0,400)", (10, 20, 300, 400)),
        ("(-0.3, 20),(300, 1000.4)", (0, 20, 300, 1000)),
        ("(-0.5,20),(300,400)", None),
        ("(10,20),(300,1000.5)", None),
        ("(10.5,20),(300,400)", None),
        ("(10,20),(300,1001)", None),
    ],
)
def test_numbers_that_are_integers_but_for_rounding(read, box, target):
    text = f"<think>hm</think><answer>In image 2: <|box_start|>{box}<|box_end|></answer>"
    examples, rejected = read([answered(text)])
    if target is None:
        assert examples == [] and f"not a box on the grid: '{box}'" in rejected[0].reason
    else:
        assert examples[0].targets == (Target(target, 2),)
        assert parse_response(examples[0].response, 2).objects[0].box == target


def test_long_numbers_are_not_cut(read):
    _, (bad,) = read([answered("In image 2: <|box_start|>(1,2),(30,10000.0)<|box_end|>")])
    assert "not a box on the grid: '(1,2),(30,10000)'" in bad.reason


@pytest.mark.parametrize("numbers", ["(0.0,0.0),(1.0,1.0)", "(0,0),(0.5,1)", "(0.1,0.2),(0.3,1.0)"])
def test_fractions_of_the_image_are_no_places_on_the_grid(read, numbers):
    text = f"In image 2: <|box_start|>{numbers}<|box_end|>"
    corners = [float(each) for each in re.findall(r"[\d.]+", numbers)]
    trajectory = {
        "images": ["1.jpg"],
        "question": "Where?",
        "targets": [{"image": 1, "box": corners}],
    }
    for row in (answered(text), answered(f"<think>{text}</think>{ANSWER}"), trajectory):
        examples, (bad,) = read([row])
        assert examples == [] and "fractions of the image; write four integers" in bad.reason
    (example,), _ = read([trajectory | {"targets": [{"image": 1, "box": [0, 0, 1, 1]}]}])
    assert example.targets[0].box == (0, 0, 1, 1)


@pytest.mark.parametrize(
    "answer",
    [
        f"{before} {BOX}"
        for before in (
            *("Image (2):", "In image two:", "img 2:", "2nd img", "second input image"),
            *("image no. 2", "Image: 2,", "**Image:** 2", "<image>2</image>", "image=2"),
            *(
                "Target image: 2.",
                '{"image": 2',
                "In image 1 and 2:",
                "In the first and second image:",
            ),
            "In the second image, unlike the first image, the cat is at",
        )
    ]
    + [f"{BOX}{behind}" for behind in (", in the second image", ". It is in the second image.")]
    + [f"<|object_ref_start|>cat in the second image<|object_ref_end|>{BOX}"],
)
def test_words_about_images_are_understood_or_the_row_is_left_out(read, answer):
    asked = ("user", "<image><image>\nFind the cat like that in image 1.")
    row = chat(asked)
    row["messages"].append({"role": "assistant", "content": answer})
    examples, _ = read([row])
    assert not examples or examples[0].targets[0].image == 2


@pytest.mark.parametrize("mark", ["Think", "thinking", "reasoning"])
def test_thoughts_in_other_marks_are_named(read, mark):
    examples, (bad,) = read([answered(f"<{mark}>{THOUGHTS}</{mark}>{ANSWER}")])
    assert examples == [] and f"the answer has <{mark}>; mark thoughts by <think>" in bad.reason


@pytest.mark.parametrize("mark", [{"loss": False}, {"weight": 0}, {"loss_scale": 0.0}])
def test_answers_that_are_not_to_be_learned_are_left_out(read, mark):
    examples, (bad,) = read([answered(ANSWER, **mark)])
    assert examples == [] and "not to be learned" in bad.reason
    (example,), _ = read([answered(ANSWER, loss=True, weight=1)])
    assert example.targets == (TARGET,)


def test_a_row_with_a_wrong_answer_is_left_out(read):
    examples, (bad,) = read([answered(ANSWER) | {"kto_tag": False}])
    assert examples == [] and "'kto_tag' says" in bad.reason
