"""Files of JSON lines: what a killed process or a full disk leaves in them."""

import errno
import json
import os

import pytest

from mirg_jax.data.pipeline import RejectedLog
from mirg_jax.errors import DataError
from mirg_jax.files import lines, outputs

ROWS = [{"n": 1}, {"n": "é\u2028"}, {"n": [3]}]
TEXT = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


@pytest.mark.parametrize("rest", ["", '{"n', '{"n": 4', "\0\0\0", '{"n": "' + "x" * 200_000])
def test_a_line_that_was_not_finished_is_passed_over_and_cut(rest, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(TEXT + rest)
    assert list(lines.rows(path)) == ROWS
    assert lines.is_torn(path) == bool(rest)
    assert path.read_text() == TEXT + rest  # reading changes nothing
    writer = lines.LineWriter(path)
    line = writer.write({"n": 5})
    writer.close()
    assert path.read_text() == TEXT + '{"n": 5}\n'
    assert path.read_bytes()[line.start :] == line.text
    assert [found.start for found in lines.read(path)][-1] == line.start


def test_a_last_line_without_a_line_break_counts_if_it_is_whole(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(TEXT[:-1])
    assert list(lines.rows(path)) == ROWS and not lines.is_torn(path)
    lines.mend(path)
    assert path.read_text() == TEXT
    lines.mend(tmp_path / "none.jsonl")
    assert not (tmp_path / "none.jsonl").exists()


@pytest.mark.parametrize("bad", ["{", "[1]", "7"])
def test_another_bad_line_is_named(bad, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{TEXT}{bad}\n{TEXT}")
    with pytest.raises(DataError, match=r"rows.jsonl line 4: not a JSON object; remove the line"):
        list(lines.rows(path))
    path.write_bytes(b"\x1f\x8b\x08\n" + TEXT.encode())
    with pytest.raises(DataError, match=r"rows.jsonl: is a binary file, not JSON lines"):
        list(lines.rows(path))
    path.write_text(f"{TEXT}\n{TEXT}")  # a blank line is no row
    assert list(lines.rows(path)) == 2 * ROWS


def test_a_line_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    writer = lines.LineWriter(tmp_path / "rows.jsonl")
    writer.write({"n": 1})
    file = writer._file

    class Full:
        """A disk with room for three more bytes."""

        fileno, truncate = file.fileno, file.truncate

        def write(self, text):
            if len(text) < 10:
                raise OSError(28, "No space left on device")
            return file.write(text[:3])

    monkeypatch.setattr(writer, "_file", Full())
    with pytest.raises(DataError, match=r"rows.jsonl: cannot be written \(No space left"):
        writer.write({"n": 234567})
    monkeypatch.undo()
    writer.write({"n": 3})
    assert list(lines.rows(tmp_path / "rows.jsonl")) == [{"n": 1}, {"n": 3}]


def test_what_cannot_be_opened_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        lines.LineWriter(tmp_path / "file" / "rows.jsonl")
    with pytest.raises(DataError, match="cannot be written"):
        lines.LineWriter(tmp_path)
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_where_a_file_is_needed_is_named(tmp_path):
    path = tmp_path / "rejected.jsonl"
    path.mkdir()
    (path / "note").touch()
    for use in (
        lambda: list(lines.rows(path)),
        lambda: lines.is_torn(path),
        lambda: lines.remove(path),
        lambda: lines.LineWriter(path),
        lambda: RejectedLog(path, step=0),
        lambda: RejectedLog(path),
    ):
        with pytest.raises(DataError, match=r"rejected.jsonl: cannot be .*move the folder away"):
            use()
    with pytest.raises(FileNotFoundError):
        list(lines.rows(tmp_path / "none.jsonl"))


@pytest.mark.parametrize("links", [True, False])
def test_of_several_that_write_a_file_one_is_first(links, tmp_path, monkeypatch):
    if not links:

        def refuse(*_):
            raise OSError(errno.EPERM, "no links")

        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "a.json"
    assert outputs.create_text(path, "one") and not outputs.create_text(path, "two")
    assert path.read_text() == "one"
    with outputs.whole(path) as mine, outputs.whole(path) as other:
        mine.write_text("three")
        other.write_text("four")
    assert path.read_text() == "three" and [each.name for each in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(ValueError), outputs.whole(path) as part:
        part.write_text("fi")
        raise ValueError
    assert path.read_text() == "three" and len(list(tmp_path.iterdir())) == 1
