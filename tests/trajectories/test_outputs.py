"""Outcomes as files and as a page, with hostile text from teachers and data sets."""

import json

import pytest
from conftest import page_data
from PIL import Image

from mirg_jax.chat.completions import Reply
from mirg_jax.data.examples import Example, Target, read_examples
from mirg_jax.errors import reason_kind
from mirg_jax.grounding.grammar import (
    GroundedObject,
    format_answer,
    format_box,
    format_object,
    format_response,
    parse_response,
)
from mirg_jax.trajectories import outputs, page
from mirg_jax.trajectories.plan import QuestionOutcome, StageAnswer

NASTY = "<script>alert(1)</script> & \ud800"


def accepted(name="a", targets=None):
    targets = targets or (Target((0, 0, 500, 500), 1), Target((10, 10, 900, 900), None, "sky"))
    objects = [
        GroundedObject((0, 0, 500, 500), 1, 1, "dog"),
        GroundedObject((10, 10, 900, 900), 2, 1, "blue sky"),
    ]
    question = Example(
        name, "diff", ("a.png", "b.png"), "Where are they?", targets, source="x row 1"
    )
    answer = format_answer([GroundedObject(o.box, o.image, o.number) for o in objects])
    thoughts = " and ".join(map(format_object, objects))
    plain = " ".join(f"Image-{o.image}: {format_box(o.box)}" for o in objects)
    reasoning = format_response("A dog and a sky.", plain)
    outcome = QuestionOutcome(
        question, [], reasoning, tuple(objects), format_response(thoughts, answer)
    )
    outcome.answers = [
        StageAnswer("reasoning", 1, Reply(NASTY), 0.5, ("text outside",)),
        StageAnswer("reasoning", 2, Reply(reasoning), 0.25, ()),
        StageAnswer("reassembly", 1, Reply(outcome.grounded), 0.25, ()),
    ]
    return outcome


def rejected(name="b"):
    question = Example(name, "diff", ("a.png", "gone.png"), NASTY[:-1], (Target((1, 2, 3, 4), 2),))
    reply = StageAnswer("reasoning", 1, Reply(NASTY), 0.0, ("2 words of thought, not 5 to 9",))
    return QuestionOutcome(question, [reply], rejected=f"reasoning: {NASTY[:-1]}")


def test_variants_of_several_targets():
    found = outputs.variants(accepted())
    assert set(found) == set(outputs.VARIANTS)
    said = parse_response(found["bbox_caption"].response, 2)
    # Names come from the data set if it has them, else from the trajectory, and so do images.
    assert [(o.label, o.image, o.box) for o in said.objects] == [
        ("dog", 1, (0, 0, 500, 500)),
        ("sky", 2, (10, 10, 900, 900)),
    ]
    assert found["answer_only"].response is None
    assert found["grounded"].targets == found["answer_only"].targets


def test_files_hold_each_question_once_and_appear_whole(tmp_path):
    unfinished = QuestionOutcome(accepted("c").question, unfinished=True)
    passing = outputs.write_outcomes([accepted(), rejected(), unfinished], tmp_path)
    next(passing)
    assert {path.suffix for path in tmp_path.iterdir()} == {".part"}
    assert len(list(passing)) == 2
    assert not list(tmp_path.glob("*.part"))
    for name in outputs.VARIANTS:
        examples, bad = read_examples(tmp_path / f"{name}.jsonl")
        assert [e.id for e in examples] == ["a"] and not bad
    (row,) = map(json.loads, (tmp_path / "rejected.jsonl").read_text().splitlines())
    assert row["id"] == "b"
    refused = [json.loads(line) for line in (tmp_path / "refused.jsonl").read_text().splitlines()]
    assert [(r["id"], r["try"], r["text"]) for r in refused] == [("a", 1, NASTY), ("b", 1, NASTY)]
    summary = json.loads((tmp_path / "summary.json").read_text())
    counts = [summary[name] for name in ("questions", "accepted", "rejected", "unfinished")]
    assert counts == [3, 1, 1, 1]
    assert summary["stages"]["reasoning"]["dollars"] == 0.75
    assert summary["stages"]["reasoning"]["reasons"] == {
        "text outside": 1,
        "… words of thought, not … to …": 1,
    }
    assert "all" in outputs.yield_table(summary)


def test_page_escapes_all_that_it_shows(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    Image.new("RGB", (30, 20)).save(tmp_path / "b.png")
    outcomes = list(outputs.write_outcomes([accepted(), rejected()], tmp_path))
    summary = json.loads((tmp_path / "summary.json").read_text())
    page.write_trajectory_page(tmp_path / "report.html", summary, outcomes, tmp_path)
    assert "<script>alert" not in (tmp_path / "report.html").read_text()
    data = page_data(tmp_path / "report.html")
    (view,) = data["views"]
    first, second = view["cards"]
    assert [answer["good"] for answer in first["answers"]] == [True, True, False]
    for answer in first["answers"]:  # with every box, the last stage first
        assert answer["names"] == ["dog", "blue sky"]
        assert [place[1:] for place in answer["places"]] == [
            [1, 0, 0, 0.5, 0.5],
            [2, 0.01, 0.01, 0.89, 0.89],
        ]
    assert len(first["truth"]) == 1  # the other's image is not known
    assert "".join(second["answers"][0]["pieces"]) == NASTY.replace("\ud800", "?")
    assert second["title"].startswith("Static, b: reasoning: <script>alert(1)")
    problems = [data["pictures"][picture]["problem"] for picture in second["images"]]
    assert problems[0] == "" and "no such file" in problems[1]


def test_a_page_shows_some_of_every_kind():
    sample = page.Sample(8, tasks=1)
    for n in range(20):
        sample.add(accepted(str(n)))
        sample.add(rejected(str(n)))
        sample.add(QuestionOutcome(accepted().question, unfinished=True))
    results = [bool(outcome.rejected) for outcome in sample.outcomes]
    assert results.count(True) == results.count(False) == 4


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("not a box on the grid: '(1,2),(3,4)'", "not a box on the grid: …"),
        ("the answer overlaps the truth by 0.42 only", "the answer overlaps the truth by … only"),
        ("id [1-2] is given a box twice", "id … is given a box twice"),
    ],
)
def test_reasons_are_counted_without_their_particulars(reason, expected):
    assert reason_kind(reason) == expected
