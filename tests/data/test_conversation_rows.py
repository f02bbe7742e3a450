"""Conversations in the forms in which data come: speakers, contents in parts, images, thoughts."""

import functools

import pytest
from data_rows import BOX, MGROUNDING, TRAJECTORY, chat, read_content, said

from mirg_jax.data.examples import Target
from mirg_jax.data.prompts import PromptStyle, chat_text


@pytest.fixture
def read(tmp_path):
    return functools.partial(read_content, tmp_path)


def test_a_bad_turn_leaves_the_other_turns(read):
    named = said(f"In the first image {BOX}")
    turns = said("none") + named + said(BOX, "Image-2?") + said(BOX, "Where?")
    examples, rejected = read([{**MGROUNDING, "conversations": turns}])
    assert [(turn.id, turn.targets[0].image) for turn in examples] == [("a#2", 1), ("a#3", 2)]
    assert [turn.id for turn in rejected] == ["a", "a#4"]
    assert rejected[0].reason == "the answer holds no box"
    assert "which of the 2 images a box is in is not said" in rejected[1].reason


def test_the_answers_wording_comes_before_the_questions(read):
    conversations = said(f"It's in the second image. {BOX}", "Not as in the first image")
    (example,), _ = read([{**MGROUNDING, "conversations": conversations}])
    assert example.targets == (Target((10, 20, 300, 400), 2),)


ASKED, ANSWERED = ("user", "<image><image>Where is the dog?"), ("assistant", f"Image-2: {BOX}")


@pytest.mark.parametrize(
    "row, images",
    [
        (chat(ASKED, ANSWERED), ["1.jpg", "2.jpg"]),
        (chat(("system", "You see boxes."), ASKED, ANSWERED), ["1.jpg", "2.jpg"]),
        (chat(("human", "<image>Where?"), ("gpt", BOX), images=["1.jpg"]), ["1.jpg"]),
        ({"conversations": chat(ASKED, ANSWERED)["messages"], "image": ["a", "b"], "id": 3}, "ab"),
        ({"conversations": said(BOX), "image": "1.jpg", "id": "a"}, ["1.jpg"]),
        ({"messages": said(BOX), "image": "1.jpg", "images": None}, ["1.jpg"]),
        # As LLaMA-Factory has them, and as tables do, whose rows have all columns.
        ({"conversations": said(BOX), "images": ["1.jpg"]}, ["1.jpg"]),
        ({"conversations": said(BOX), "images": ["1.jpg"], "id": None, "system": None}, ["1.jpg"]),
        (chat(ASKED, ANSWERED, conversations=None, question=None, answer=None), ["1.jpg", "2.jpg"]),
        (
            {
                "messages": [
                    {"from": None, "value": None, "role": role, "content": content}
                    for role, content in (ASKED, ANSWERED)
                ],
                "images": [{"bytes": None, "path": "1.jpg"}, {"url": "file:///d/2%20b.jpg"}],
            },
            ["1.jpg", "/d/2 b.jpg"],
        ),
    ],
)
def test_other_forms_of_conversations(read, row, images):
    (example,), rejected = read([row], "rows.jsonl")
    assert rejected == [] and example.images == tuple(images)
    assert example.targets[0].box == (10, 20, 300, 400)
    assert example.question.startswith("<image>")
    assert example.id == str(row.get("id") or "unknown_00000")


def test_contents_in_parts(read):
    text, image = {"type": "text", "text": "Where?"}, {"type": "image"}
    inside = [image | {"image": "1.jpg"}, text, image | {"image": "2.jpg"}]
    answer = ("assistant", [{"type": "text", "text": f"Image-2: {BOX}"}])
    row = chat(("user", inside), answer)
    del row["images"]
    beside = chat(("user", [image, text, image]), answer)
    for example in read([row, beside])[0]:
        assert example.question == "<image>Where?<image>"
        assert example.images == ("1.jpg", "2.jpg")
        assert example.targets == (Target((10, 20, 300, 400), 2),)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "2.jpg", "detail": "high"}},
        {"type": "image_url", "image_url": "2.jpg"},
        {"type": "input_image", "image_url": "2.jpg"},
        {"type": "image", "path": "2.jpg", "text": None},
        {"type": "image", "url": "2.jpg"},
        {"type": "image", "image": {"bytes": None, "path": "2.jpg"}},
        {"image": "2.jpg"},
    ],
)
def test_forms_of_an_images_part(read, part):
    asked = ("user", [{"type": "image", "image": "1.jpg"}, part, {"text": "Where?"}])
    rows = [chat(asked, ANSWERED, **images) for images in ({}, {"images": []}, {"images": None})]
    rows[0]["images"] = [{"path": "1.jpg"}, "2.jpg"]
    examples, rejected = read(rows)
    assert rejected == [] and len(examples) == 3
    for example in examples:
        assert example.images == ("1.jpg", "2.jpg")
        assert example.question == "<image><image>Where?"
    rows[0]["images"] = ["1.jpg", "3.jpg"]
    _, (bad,) = read(rows)
    assert bad.source == "rows.json row 0"
    assert "image '2.jpg' where 'images' has ['1.jpg', '3.jpg']; remove the wrong" in bad.reason


IMAGE = {"type": "image", "image": "1.jpg"}


@pytest.mark.parametrize(
    "row, reason",
    [
        (
            chat(("user", [IMAGE | {"image": "2.jpg"}, ASKED[1]]), ANSWERED),
            "neither text nor an image",
        ),
        (chat(("user", [{"type": "image", "base64": "/9j/4"}]), ANSWERED), "given in 'base64'"),
        (
            chat(("user", [{"type": "image_url", "image_url": {"url": "http://a"}}]), ANSWERED),
            "web address",
        ),
        (chat(("system", [IMAGE]), ASKED, ANSWERED), "system message has an image"),
        (chat(ASKED, ("assistant", [IMAGE])), "an answer has an image"),
        (chat(("system", "You see boxes.")), "in turn"),
        (chat(ASKED, ANSWERED, ("system", "x"), ANSWERED), "in turn"),
        (chat(ASKED, ANSWERED, ASKED), "in turn"),
        (chat(ASKED, ("tool", BOX)), "in turn"),
        (chat((7, ASKED[1]), ANSWERED), "in turn"),
        (chat(("user", None), ANSWERED), "'content' is missing"),
        (chat(("user", [{"type": "video"}]), ANSWERED), "neither text nor an image"),
        (chat(("user", [{"type": "image"}] * 3), ANSWERED), "3 <image> marks for 2 images"),
        (chat(ASKED, ANSWERED, images=None, image=""), "not a path"),
        (chat(ASKED, ANSWERED, images=None, image=7), "'images' is missing"),
        ({"messages": [["user", "Where?"]], "images": ["1.jpg"]}, "not an object"),
    ],
)
def test_conversations_that_cannot_be_used(read, row, reason):
    examples, (bad,) = read([row, chat(ASKED, ANSWERED)])
    assert len(examples) == 1 and reason in bad.reason


# Forms whose meaning is plain ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "sides",
    [("Human", "GPT"), ("User", "Assistant"), ("HUMAN", "gpt "), ("USER", "ASSISTANT")],
)
def test_speakers_in_any_case(read, sides):
    turns = [(sides[0], ASKED[1]), (sides[1], ANSWERED[1])]
    rows = [chat(*turns), chat(("System", "You see boxes."), *turns)]
    rows.append({**MGROUNDING, "conversations": [{"from": a, "value": b} for a, b in turns]})
    examples, rejected = read(rows)
    assert rejected == [] and [each.targets[0].image for each in examples] == [2, 2, 2]


PAIR = {"query": ASKED[1], "response": ANSWERED[1]}


@pytest.mark.parametrize(
    "row",
    [
        {**PAIR, "images": ["1.jpg", "2.jpg"]},
        {**PAIR, "images": [], "image": ["1.jpg", "2.jpg"], "history": [], "system": "You."},
        {**PAIR, "images": ["1.jpg", "2.jpg"], "history": None, "messages": [], "question": None},
        chat(ASKED, ANSWERED, conversations=[], targets=[]),
        chat(ASKED, ANSWERED, images=[], image=["1.jpg", "2.jpg"]),
        chat(ASKED, ANSWERED, image=["./1.jpg"]),
    ],
)
def test_forms_whose_meaning_is_plain(read, row):
    for given in (row, row | {"id": 7.0}):
        (example,), rejected = read([given], "rows.jsonl")
        assert rejected == [] and example.images == ("1.jpg", "2.jpg")
        assert example.question == ASKED[1] and example.targets[0].image == 2
    assert example.id == "7"


def test_one_image_beside_an_empty_list(read):
    for empty in ([], None):
        row = {"conversations": said(BOX), "images": empty, "image": "a.png"}
        (example,), _ = read([row])
        assert example.images == ("a.png",)
        (example,), _ = read([{**TRAJECTORY, "images": empty, "image": ["a.png", "b.png"]}])
        assert example.images == ("a.png", "b.png")


def test_a_history_is_earlier_turns(read):
    history = [["<image>Where is the cat?", f"In image 1: {BOX}"]]
    row = PAIR | {"query": "<image>And the dog?", "images": ["1.jpg", "2.jpg"], "history": history}
    examples, rejected = read([row])
    assert rejected == [] and [each.targets[0].image for each in examples] == [1, 2]
    assert [each.images for each in examples] == [("1.jpg",), ("1.jpg", "2.jpg")]
    for wrong in (["a", "b"], [["a"]], [{"query": "a", "response": "b"}], "a", [["a", None]]):
        _, (bad,) = read([row | {"history": wrong}])
        assert "'history' is not a list of pairs" in bad.reason and "'messages'" in bad.reason


# The order of images ------------------------------------------------------------------------------


def test_images_of_later_turns_come_later(read):
    asked = [("user", text) for text in ("<image>Where?", "<image><image>And here?", "And there?")]
    answered = [("assistant", f"In image {n}: {BOX}") for n in (1, 3, 2)]
    turns = [turn for pair in zip(asked, answered, strict=True) for turn in pair]
    examples, rejected = read([chat(*turns, images=["1.jpg", "2.jpg", "3.jpg"])])
    assert rejected == []
    assert [len(example.images) for example in examples] == [1, 3, 3]
    style = PromptStyle(system="")
    texts = [chat_text(each.question, len(each.images), style) for each in examples]
    shown = "<|vision_start|><|image_pad|><|vision_end|>"
    first, second, third = (f"Image-{n}: {shown}" for n in (1, 2, 3))
    assert f"user\n{first}Where?" in texts[0]
    assert f"user\n{first}{second}{third}And here?" in texts[1]
    assert f"user\n{first}{second}{third}And there?" in texts[2]
    # An answer about an image that is not there yet.
    _, (bad, *_) = read([chat(*turns[:1], answered[2], *turns[2:], images=["1", "2", "3"])])
    assert "a box refers to image 2, which is not there" in bad.reason


def test_images_without_a_mark_come_before_the_first_turn(read):
    turns = (("user", "Where?"), ANSWERED, ("user", "<image>And here?"), ANSWERED)
    examples, _ = read([chat(*turns, images=["1.jpg", "2.jpg", "3.jpg"])])
    assert [example.images for example in examples] == [
        ("1.jpg", "2.jpg"),
        ("1.jpg", "2.jpg", "3.jpg"),
    ]
    _, (bad, _) = read([chat(*turns, images=["1.jpg"])])
    assert bad.reason == "no image stands before the question or in it"


def part(path=None, **more):
    return {"type": "image"} | ({"image": path} if path else {}) | more


TEXT = {"type": "text", "text": "Where?"}


@pytest.mark.parametrize(
    "parts, question",
    [
        ([part("1.jpg"), part("2.jpg"), TEXT], "<image><image>Where?"),
        ([part("./1.jpg"), TEXT, part("x/../2.jpg")], "<image>Where?<image>"),
        ([part(index=0), part(index=1.0), TEXT], "<image><image>Where?"),
        ([part(index=0), TEXT | {"index": None}, part()], "<image>Where?<image>"),
        ([part("2.jpg"), TEXT], "<image>Where?"),  # the first has no mark and comes first
        ([part(index=1), TEXT], "<image>Where?"),
        ([part("1.jpg"), part("2.jpg"), TEXT, part("1.jpg")], "<image><image>Where?"),
        ([part(index=0), part(), TEXT, part(index=0)], "<image><image>Where?"),
    ],
)
def test_parts_that_name_one_of_the_images(read, parts, question):
    (example,), rejected = read([chat(("user", parts), ANSWERED)])
    assert rejected == [] and example.images == ("1.jpg", "2.jpg")
    assert example.question == question


@pytest.mark.parametrize(
    "parts, reason",
    [
        ([part("1.jpg"), TEXT], "has image '1.jpg' where 'images' has '2.jpg'"),
        ([part("2.jpg"), part("1.jpg")], "has image '2.jpg' where 'images' has '1.jpg'"),
        ([part(index=1), part(index=0)], "has the image of index 1 where 'images' has '1.jpg'"),
        ([part(index=2), TEXT], "index 2, which is none of 0..1"),
        ([part(index=-1), TEXT], "index -1, which is none of 0..1"),
        ([part(index="1"), TEXT], "index is '1', not an integer"),
        ([part(index=True), TEXT], "index is True, not an integer"),
        ([part("3.jpg"), TEXT], "has image '3.jpg' where 'images' has ['1.jpg', '2.jpg']"),
        ([part(), part(), part("1.jpg")], "3 <image> marks for 2 images"),
    ],
)
def test_parts_that_are_unclear(read, parts, reason):
    _, (bad,) = read([chat(("user", parts), ANSWERED)])
    assert reason in bad.reason and "\n" not in bad.reason


def test_a_part_is_named_again_in_a_later_turn(read):
    first, again = [part("1.jpg"), part("2.jpg"), TEXT], [part("1.jpg"), TEXT]
    row = chat(("user", first), ANSWERED, ("user", again), ANSWERED)
    examples, rejected = read([row])
    assert rejected == [] and [each.question for each in examples] == [
        "<image><image>Where?",
        "Where?",
    ]
    assert {each.images for each in examples} == {("1.jpg", "2.jpg")}
    # Without a list of images it is unclear whether it counts as one.
    _, (bad,) = read([row | {"images": []}])
    assert "image '1.jpg' is in the conversation twice" in bad.reason
    _, (bad,) = read([chat(("user", [part("1.jpg"), part(index=0)]), ANSWERED, images=None)])
    assert "by its index, but the row has no 'images'" in bad.reason


def test_a_box_of_another_form_is_shown_with_ours(read):
    turns = said('```json\n[{"bbox_2d": [12, 30, 200, 300], "label": "dog"}]\n```')
    _, (bad,) = read([{**MGROUNDING, "conversations": turns}])
    assert "'[12, 30, 200, 300]' is of another form; write <|box_start|>(x1,y1)" in bad.reason
