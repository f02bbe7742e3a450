"""The checks of each stage, on answers with one known flaw and on arbitrary texts."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirg_jax.data.examples import Example, Target
from mirg_jax.errors import ConfigError
from mirg_jax.grounding.grammar import (
    GroundedObject,
    find_objects,
    format_answer,
    format_box,
    format_object,
    format_response,
    parse_response,
    prose,
    renumber,
)
from mirg_jax.grounding.tasks import MIG_BENCH_TASKS
from mirg_jax.trajectories import checks, prompts

TEXTS = prompts.load_prompts()
RULES = checks.Rules(0.9, 0.5, True, 3, 50, 6, checks.read_leaks(TEXTS.leaks))
TRUTH = (100, 200, 500, 600)
QUESTION = Example(
    "q", "diff", ("a.jpg", "b.jpg"), "<image>\n<image>\nWhat differs?", (Target(TRUTH, 2),)
)
ANSWER = f"Image-2: {format_box(TRUTH)}"
THOUGHTS = "Image-1 shows a red cup, Image-2 a blue one at the left."
MAPPING = "".join(
    f"Image-{image}: <|object_ref_start|>{name}<|object_ref_end|><|box_start|>{box}<|box_end|>\n"
    for image, name, box in (
        (1, "red cup", "(10,20),(300,400)"),
        (2, "blue  cup", "(110,210),(500,590)"),
        (2, "table", "(0,500),(1000,1000)"),
    )
)
OBJECTS = (
    GroundedObject((10, 20, 300, 400), 1, 1, "red cup"),
    GroundedObject(TRUTH, 2, 1, "blue cup"),
    GroundedObject((0, 500, 1000, 1000), 2, 2, "table"),
)
CUP, BLUE, TABLE = map(format_object, OBJECTS)
FINAL = format_answer([dataclasses.replace(OBJECTS[1], label="")])
GROUNDED = (
    f"Image-1 shows {CUP}. Image-2 has {BLUE} on {TABLE} instead of <bbox_id>[1-1]</bbox_id>."
)


def reasoned(thoughts=THOUGHTS, answer=ANSWER):
    return checks.check_reasoning(format_response(thoughts, answer), QUESTION, RULES)


def test_good_answers_pass():
    assert reasoned() == []
    assert checks.read_mapping(MAPPING, QUESTION, RULES) == (OBJECTS, [])
    text = format_response(GROUNDED, FINAL)
    assert checks.check_grounded(text, QUESTION, OBJECTS, RULES) == (text, [])


@pytest.mark.parametrize(
    ("thoughts", "answer", "reason"),
    [
        (THOUGHTS, ANSWER.replace("Image-2", "Image-1"), "not in image 2"),
        (THOUGHTS, ANSWER.replace("Image-2", "Image-3"), "image 3, which is not there"),
        (THOUGHTS, ANSWER.replace("Image-2: ", ""), "not in image 2"),
        (THOUGHTS, "Image-2", "no valid box"),
        (THOUGHTS, ANSWER.replace("500,600", "400,600"), "overlaps the truth by 0.75"),
        (THOUGHTS, ANSWER + ANSWER, "2 boxes and the truth 1"),
        (THOUGHTS + format_box(TRUTH), ANSWER, "hold boxes"),
        (THOUGHTS + " It is at (100,200).", ANSWER, "coordinates in words: '(100,200)'"),
        (THOUGHTS + " It is at [0.1, 0.2, 0.5, 0.6].", ANSWER, "coordinates in words"),
        (THOUGHTS + " This fits the ground truth.", ANSWER, "know the answer: 'ground truth'"),
        (THOUGHTS + " It is there, as given.", ANSWER, "know the answer: 'as given'"),
        (THOUGHTS + " The box provided shows it.", ANSWER, "know the answer"),
        (THOUGHTS + "<|im_end|>", ANSWER, "control token"),
        (THOUGHTS + "\ud83d", ANSWER, "half a surrogate pair"),
        ("A cup.", ANSWER, "2 words of thought"),
        ("cup " * 60, ANSWER, "60 words of thought"),
        (THOUGHTS + "</think>", ANSWER, "one think block"),
    ],
)  # fmt: skip
def test_flaws_of_stage_1(thoughts, answer, reason):
    assert any(reason in problem for problem in reasoned(thoughts, answer))


@pytest.mark.parametrize("around", ["Sure! {}", "{}\nHope this helps", "```\n{}\n```"])
def test_words_around_the_blocks_are_a_flaw(around):
    text = around.format(format_response(THOUGHTS, ANSWER))
    assert any(
        "outside the think and answer blocks" in problem
        for problem in checks.check_reasoning(text, QUESTION, RULES)
    )
    refusal = checks.check_reasoning("I'm sorry, I can't help with that.", QUESTION, RULES)
    assert any("not one think block" in problem for problem in refusal)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (MAPPING, "", "strip special tokens"),
        (MAPPING, "red cup (10,20),(300,400)", "strip special tokens"),
        ("(300,400)", "(5,400)", "not a box on the grid"),
        ("(300,400)", "(300,1400)", "not a box on the grid"),
        ("Image-1", "Image-7", "image 7, which is not there"),
        ("Image-1", "", "an object of no image"),
        ("red cup", " ", "an object without a name"),
        ("red cup", "red \udc00cup", "half a surrogate pair"),
        ("(110,210)", "(480,210)", "the nearest overlaps it by 0.0"),
        ("Image-2: <|object_ref_start|>blue", "Image-1: <|object_ref_start|>blue", "nearest"),
    ],
)
def test_flaws_of_stage_2(old, new, reason):
    objects, problems = checks.read_mapping(MAPPING.replace(old, new), QUESTION, RULES)
    assert objects == () and any(reason in problem for problem in problems)


def test_mapping_numbers_by_image_and_counts_once():
    late = (
        MAPPING + MAPPING.splitlines()[0] + "\n" + MAPPING.splitlines()[0].replace("10,", "600,9")
    )
    objects, problems = checks.read_mapping(late.replace("600,920", "1,2"), QUESTION, RULES)
    assert not problems
    assert [(o.image, o.number) for o in objects] == [(1, 1), (2, 1), (2, 2)]
    rules = dataclasses.replace(RULES, truth_boxes=False, max_objects=3)
    objects, _ = checks.read_mapping(MAPPING, QUESTION, rules)
    assert objects[1].box == (110, 210, 500, 590)
    rules = dataclasses.replace(RULES, max_objects=2)
    assert "3 objects" in checks.read_mapping(MAPPING, QUESTION, rules)[1][0]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (CUP, "a cup", "was not given a box before"),
        ("[1-1]</bbox_id>.", "[1-4]</bbox_id>.", "id [1-4] was not given a box before"),
        ("[1-1]</bbox_id>.", "[5-1]</bbox_id>.", "not the id of an image and an object"),
        ("(300,400)", "(301,400)", "id [1-1] has a box that stage 2 didn't give it"),
        (CUP, CUP.replace("[1-1]", "[2-7]"), "id [2-7] has a box that stage 2 didn't give it"),
        (CUP, CUP + CUP, "id [1-1] is given a box twice"),
        (CUP, "<bbox_id>[1-1]</bbox_id>" + CUP, "id [1-1] was not given a box before"),
        (TABLE, format_box(OBJECTS[2].box), "a box without an id"),
        (BLUE, "something", "not an object of the thoughts"),
        (f"<answer>{FINAL}", f"<answer>{format_box(TRUTH)}", "not an object of the thoughts"),
        (f"<answer>{FINAL}", f"<answer>{TABLE}", "overlaps the truth by"),
        (f"<answer>{FINAL}", f"<answer>{CUP}", "not in image 2"),
        (f"<answer>{FINAL}", f"<answer>{FINAL}{TABLE}", "2 boxes"),
        ("instead of", "instead of the correct answer", "know the answer"),
    ],
)
def test_flaws_of_stage_3(old, new, reason):
    text = format_response(GROUNDED, FINAL)
    assert old in text
    result, problems = checks.check_grounded(text.replace(old, new), QUESTION, OBJECTS, RULES)
    assert result == "" and any(reason in problem for problem in problems)


def test_objects_are_numbered_as_they_are_mentioned():
    text = format_response(f"Image-2 has {TABLE} with {BLUE} on it.", FINAL)
    result, problems = checks.check_grounded(text, QUESTION, OBJECTS, RULES)
    assert not problems
    response = parse_response(result, 2)
    assert [(m.image, m.number, m.label) for m in response.mentions] == [
        (2, 1, "table"), (2, 2, "blue cup"),
    ]  # fmt: skip
    assert response.objects[0].number == 2 and response.objects[0].box == TRUTH
    # Only the numbers have changed, and with the new ones it passes again.
    swap = {(2, 1): 2, (2, 2): 1}
    assert renumber(result, swap) == text
    again = [dataclasses.replace(o, number=swap.get((o.image, o.number), 1)) for o in OBJECTS]
    assert checks.check_grounded(result, QUESTION, again, RULES) == (result, [])


def test_several_targets_are_matched_one_to_one():
    targets = (Target((0, 0, 100, 100), 1), Target((0, 0, 90, 100), 1), Target((5, 5, 9, 9), None))
    objects = [
        GroundedObject((5, 5, 9, 9), 2),
        GroundedObject((0, 0, 100, 100), 1),
        GroundedObject((0, 0, 90, 99), 1),
    ]
    assert checks.answer_problems(objects, targets, 0.9) == []
    assert len(checks.answer_problems(objects[::-1], targets, 0.995)) == 1
    assert checks.match_targets([objects[0]], targets[:2]) == [(None, 0.0), (None, 0.0)]


def test_patterns_of_leaks():
    with pytest.raises(ConfigError, match="is no pattern"):
        checks.read_leaks("# a remark\n(open")
    assert len(checks.read_leaks("# a remark\n\nlet me see\n")) == 1


boxes = st.tuples(*[st.integers(0, 499)] * 2, *[st.integers(500, 1000)] * 2)
names = st.text("abc xyz", min_size=1, max_size=12).filter(str.strip)


@given(st.lists(st.tuples(st.integers(1, 2), names, boxes), min_size=1, max_size=5))
def test_lines_of_any_objects_are_read(things):
    text = "\n".join(
        f"Image-{image}: {format_object(GroundedObject(box, label=name))}"
        for image, name, box in things
    )
    question = dataclasses.replace(QUESTION, targets=(Target(things[0][2], things[0][0]),))
    objects, problems = checks.read_mapping(text, question, RULES)
    assert not problems
    assert {(o.image, o.label, o.box) for o in objects} <= {
        (image, " ".join(name.split()), box) for image, name, box in things
    }
    for image in (1, 2):
        numbers = [o.number for o in objects if o.image == image]
        assert numbers == list(range(1, len(numbers) + 1))
    # As stage 3 gets them, they are read back whole.
    assert find_objects(prompts.objects_text(objects), 2)[0] == objects


pieces = st.sampled_from(
    ["<think>", "</think>", "<answer>", "</answer>", "<bbox_id>", "[1-1]", "</bbox_id>", CUP, BLUE]
    + ["<|box_start|>", "(1,2),(3,4)", "<|box_end|>", "Image-2: ", FINAL, "words ", "<|im_end|>"]
)


@given(st.lists(pieces | st.text(max_size=5), max_size=20).map("".join))
def test_no_text_breaks_a_check_and_what_passes_is_sound(text):
    checks.check_reasoning(text, QUESTION, RULES)
    checks.read_mapping(text, QUESTION, RULES)
    result, problems = checks.check_grounded(text, QUESTION, OBJECTS, RULES)
    assert bool(result) != bool(problems)
    if result:
        assert parse_response(result, 2).format_ok
    assert "<bbox_id>" not in prose(text)


def test_prompts_of_every_stage_and_task(tmp_path):
    assert TEXTS.tasks() == set(MIG_BENCH_TASKS)
    values = {
        "reasoning": {"answer": prompts.answer_text(QUESTION)},
        "mapping": {"reasoning": THOUGHTS},
        "reassembly": {"reasoning": THOUGHTS, "objects": prompts.objects_text(OBJECTS)},
    }
    for stage in prompts.STAGES:
        said = set()
        for task in MIG_BENCH_TASKS:
            question = dataclasses.replace(QUESTION, task=task)
            text = TEXTS.render(stage, question, **values[stage])
            assert "What differs?" in text and "<image>" not in text and "$" not in text
            assert all(value in text for value in values[stage].values())
            said.add(text)
        assert len(said) == len(MIG_BENCH_TASKS)  # every task has its own
    with pytest.raises(ConfigError, match="cannot be read"):
        prompts.load_prompts(str(tmp_path))
    for stage in prompts.STAGES:
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "frame.txt").write_text("$count: $question $guidance")
        (tmp_path / stage / "diff.txt").write_text("mine")
    (tmp_path / "leaks.txt").write_text("")
    mine = prompts.load_prompts(str(tmp_path))
    assert mine.render("mapping", QUESTION, reasoning="") == "2: What differs? mine"
    assert mine.tasks() == {"diff"}
    for text, message in (("$cost", "means nothing"), ("5 $ 3", "write \\$\\$")):
        (tmp_path / "mapping/frame.txt").write_text(text)
        with pytest.raises(ConfigError, match=message):
            prompts.load_prompts(str(tmp_path))


def test_marks_within_a_question_become_names():
    question = dataclasses.replace(QUESTION, question="<image>\nIs this in <image>?")
    assert prompts.question_text(question) == "Is this in Image-2?"
