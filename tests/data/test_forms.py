"""Rows that ask for an answer without thoughts: which they are, their prompt, text and format."""

import json

import numpy as np
import pytest

from mirg_jax.data import forms
from mirg_jax.data.answers import answer_arrays
from mirg_jax.data.examples import Example, Target, read_examples, to_line
from mirg_jax.data.pipeline import response_of
from mirg_jax.data.prompts import PromptStyle, chat_text
from mirg_jax.grounding.grammar import parse_response
from mirg_jax.mig_bench import benchmark, scoring

BOX = "<|box_start|>(0,0),(100,100)<|box_end|>"
ID = "<bbox_id>[1-1]</bbox_id>"
THOUGHT = f"<think>It is {ID}{BOX}.</think><answer>{ID}</answer>"
DIRECT = f"<answer>{ID}{BOX}</answer>"


def row(number, **more):
    target = (Target((0, 0, 100, 100), 1),)
    return Example(str(number), "diff", ("1.png",), f"Where is {number}?", target, **more)


def test_a_share_of_the_rows_is_drawn_by_their_content():
    rows = [row(number) for number in range(2000)]
    found = forms.ask(rows, 0.3, seed=1)
    assert np.mean([each.direct for each in found]) == pytest.approx(0.3, abs=0.04)
    assert forms.ask(rows[::-1], 0.3, seed=1) == found[::-1]
    assert forms.ask(rows, 0.3, seed=2) != found
    assert forms.ask(rows, 0.0, seed=1) == rows
    said = [row(0, direct=True), row(1, direct=False)]
    assert forms.ask(said, 0.5, seed=1) == said
    assert all(each.direct for each in forms.ask(rows, 1.0, seed=1))


def test_a_file_says_it_of_its_rows(tmp_path):
    rows = [row(0, direct=True), row(1, direct=False), row(2)]
    path = tmp_path / "rows.jsonl"
    bad = json.loads(to_line(rows[0])) | {"direct": 1}
    path.write_text("".join(map(to_line, rows)) + json.dumps(bad) + "\n")
    found, (bad,) = read_examples(path)
    assert found == rows and "'direct' is 1, neither true nor false" in bad.reason
    assert '"direct"' not in to_line(rows[2])


def test_each_form_has_an_instruction_of_its_own():
    style = PromptStyle(instruction="Think.", direct_instruction="At once.")
    asked = [chat_text("Where?", 1, style, direct=direct) for direct in (False, True)]
    assert "Where?\nThink.<|im_end|>" in asked[0] and "Where?\nAt once.<|im_end|>" in asked[1]


def test_a_direct_answer_is_learned_without_the_thoughts():
    assert response_of(row(0, response=THOUGHT)) == THOUGHT
    assert response_of(row(0, response=THOUGHT, direct=True)) == DIRECT  # with the thoughts' box
    assert response_of(row(0, direct=True)) == DIRECT
    assert response_of(row(0, response="<think>cut", direct=True)) == DIRECT


@pytest.mark.parametrize(
    ("text", "thoughts", "direct"),
    [
        (THOUGHT, True, False),
        (DIRECT, False, True),
        (f"{DIRECT} more", False, False),
        (f"<think></think>{DIRECT}", True, False),
        (f"more {THOUGHT}", False, False),
        ("<answer>none</answer>", False, False),
        (DIRECT + DIRECT, False, False),
        (BOX, False, False),
    ],
)
def test_the_right_format_is_the_one_that_was_asked_for(text, thoughts, direct):
    assert parse_response(text, 1).format_ok == thoughts
    assert parse_response(text, 1, direct=True).format_ok == direct
    lengths = np.full((2, 1), 3)
    rows = [row(0), row(1, direct=True)]
    assert answer_arrays([text] * 2, rows, lengths, 1).format_ok.tolist() == [[thoughts], [direct]]


def test_evaluations_ask_for_either_and_score_what_was_asked_for():
    rows = [benchmark.Row(0, "diff", ("1.png",), "Where?", (0, 0, 0.1, 0.1), 1)]
    assert benchmark.as_example(rows[0], "x", direct=True).direct
    for direct, wanted in ((False, 0.0), (True, 1.0)):
        scores = scoring.score(rows, [DIRECT], direct=direct).overall
        assert (scores.format_rate, scores.hit_rate, scores.image_accuracy) == (wanted, 1.0, 1.0)
