"""The journal: what counts as paid, and lines that are cut or invalid."""

import json

import pytest

from mirg_jax.data.examples import Example
from mirg_jax.errors import DataError
from mirg_jax.trajectories.journal import Journal, recorded_reply
from mirg_jax.trajectories.request import Request

QUESTION = Example("a", "diff", ("1.jpg",), "What differs?", ())


def test_the_journal_counts_what_was_and_may_have_been_paid(tmp_path):
    journal = Journal(tmp_path, "replies.jsonl", write=True)
    journal.asked("a", 0.5)
    journal.lost("a", "cut", 0.5)
    journal.asked("a", 0.5)
    journal.reply("a", 0.1, text="ü\u2028")
    journal.asked("b", 0.3)
    assert journal.dollars == pytest.approx(0.6)
    assert journal.get("a")["text"] == "ü\u2028" and journal.get("b") is None
    journal.close()
    with open(tmp_path / "replies.jsonl", "a") as file:
        file.write('{"reply": "b", "te')  # killed while writing

    journal = Journal(tmp_path, "replies.jsonl", write=True)
    assert "a" in journal and "b" not in journal
    assert journal.dollars == pytest.approx(0.9)  # b may have been paid
    journal.asked("b", 0.3)
    journal.reply("b", 0.2, text="")
    journal.failed("c", "never")
    journal.close()
    for line in (tmp_path / "replies.jsonl").read_text().splitlines():
        json.loads(line)
    journal = Journal(tmp_path, "replies.jsonl", write=False)
    assert journal.dollars == pytest.approx(1.1)
    assert journal.get("c") == {"failed": "c", "reason": "never"}
    journal.close()
    assert "c" not in Journal(tmp_path, "replies.jsonl", write=False, retry_failed=True)


@pytest.mark.parametrize("line", ["{}", "[]", "x", '{"reply": 1, "asked": 2}', '{"reply": {}}'])
def test_an_invalid_line_is_refused(tmp_path, line):
    (tmp_path / "replies.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match="replies.jsonl line 1"):
        Journal(tmp_path, "replies.jsonl", write=False)


def test_a_reply_that_lacks_a_field_is_named(tmp_path):
    request = Request(QUESTION, "reasoning", 1, "the prompt", (), "{}")
    row = {"reply": request.key, "dollars": 0.0, "text": "yes", "problem": ""}
    whole = row | {"prompt_tokens": 1, "completion_tokens": 2}
    (tmp_path / "replies.jsonl").write_text(json.dumps(whole) + "\n")
    journal = Journal(tmp_path, "replies.jsonl", write=False)
    assert recorded_reply(journal, request).reply.text == "yes"
    (tmp_path / "replies.jsonl").write_text(json.dumps(row) + "\n")
    journal = Journal(tmp_path, "replies.jsonl", write=False)
    with pytest.raises(DataError, match=f"{request.key} .* has no 'prompt_tokens'; remove its"):
        recorded_reply(journal, request)
