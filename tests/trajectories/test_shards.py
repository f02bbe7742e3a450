"""Parts of the questions for several machines."""

import collections
import json
import pathlib

import pytest

from mirg_jax.data.examples import Example
from mirg_jax.errors import ConfigError
from mirg_jax.grounding.tasks import TRAINING_TASKS
from mirg_jax.trajectories import shards
from mirg_jax.trajectories.shards import Shard


def questions(count, tasks=TRAINING_TASKS):
    """Questions that go round the tasks."""
    return [Example(str(n), tasks[n % len(tasks)], ("a.jpg",), "?", ()) for n in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 14])
@pytest.mark.parametrize("total", [5, 70, 101])
def test_every_shard_has_all_tasks_as_evenly_as_possible(count, total, tmp_path):
    whole = questions(total)
    parts = [shards.draw(whole, Shard(index, count), tmp_path) for index in range(count)]
    assert sorted(int(each.id) for part in parts for each in part) == list(range(total))
    of_task = {task: [sum(e.task == task for e in part) for part in parts] for task in
               TRAINING_TASKS}  # fmt: skip
    for sizes in (list(map(len, parts)), *of_task.values()):
        assert max(sizes) - min(sizes) <= 1
    for part in parts:
        assert [int(each.id) for each in part] == sorted(int(each.id) for each in part)


def test_shards_that_begin_at_the_same_time_are_drawn_alike(tmp_path, monkeypatch):
    whole, parts, glob = questions(70), {}, pathlib.Path.glob

    def other_first(folder, pattern):
        """Another shard begins, and opens its journal, while this one looks for the record."""
        if not parts:
            parts[1] = []
            parts[1] = shards.draw(whole, Shard(1, 7), tmp_path)
            (tmp_path / "replies-1-of-7.jsonl").touch()
        return glob(folder, pattern)

    monkeypatch.setattr(pathlib.Path, "glob", other_first)
    parts[0] = shards.draw(whole, Shard(0, 7), tmp_path)
    parts |= {index: shards.draw(whole, Shard(index, 7), tmp_path) for index in range(2, 7)}
    assert sorted(int(each.id) for part in parts.values() for each in part) == list(range(70))
    assert min(len({each.task for each in part}) for part in parts.values()) > 4
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".jsonl"}


@pytest.mark.parametrize("text", ["", '{"drawn"', "[]", "[" * 100_000, '{"drawn": ["by task"]}'])
def test_a_damaged_record_of_shards_is_named(text, tmp_path):
    (tmp_path / "shards-of-7.json").write_text(text)
    with pytest.raises(ConfigError, match="shards-of-7.json: doesn't say how"):
        shards.draw(questions(7), Shard(0, 7), tmp_path)


def test_shards_that_an_earlier_version_began_go_on_as_they_were(tmp_path, capsys):
    whole = questions(70)
    (tmp_path / "replies-2-of-7.jsonl").write_text("")
    for index in (2, 3):  # the others of that number too
        part = shards.draw(whole, Shard(index, 7), tmp_path)
        assert [int(each.id) for each in part] == list(range(index, 70, 7))
        assert collections.Counter(each.task for each in part) == {TRAINING_TASKS[index]: 10}
        assert "its shards of 7 were begun by an earlier version" in capsys.readouterr().err
    assert len({each.task for each in shards.draw(whole, Shard(0, 14), tmp_path)}) > 4
    (tmp_path / "replies-0-of-14.jsonl").write_text("")  # begun now
    assert len({each.task for each in shards.draw(whole, Shard(0, 14), tmp_path)}) > 4
    assert not capsys.readouterr().err
    (tmp_path / "shards-of-14.json").write_text(json.dumps({"drawn": "at random"}))
    with pytest.raises(ConfigError, match="shards-of-14.json: doesn't say how"):
        shards.draw(whole, Shard(0, 14), tmp_path)
