"""Shards that write files of a batch interface into one folder."""

import collections
import json
import os
import pathlib

import fake_server
import pipeline_runs
import pytest
from asking import write_questions
from pipeline_runs import check_whole, lines
from test_batches import provider

from mirg_jax.errors import ConfigError, DataError
from mirg_jax.files.locks import Lock
from mirg_jax.trajectories import batches, build, select, settings
from mirg_jax.trajectories.shards import Shard

config = pipeline_runs.config
BOTH = [Shard(0, 2), Shard(1, 2)]


@pytest.fixture
def job(config, tmp_path, monkeypatch):
    """Does a shard's round; None: of all questions."""
    source = write_questions(tmp_path / "data", 28)
    how = settings.read(config("http://127.0.0.1:9/v1"))
    monkeypatch.setattr(batches, "MAX_REQUESTS", 10)
    what = {"source": str(source), "image_root": str(source.parent), "output_dir": tmp_path / "out"}
    return lambda shard=None: build.batch(how, **what, shard=shard)


def answer_all(folder):
    for path in folder.glob("*-[0-9][0-9][0-9][0-9].jsonl"):
        if not path.with_suffix(".answers.jsonl").exists():
            provider(path, fake_server.answer)


def finish(job, folder):
    """Does rounds until nothing is left, then merges, and checks that all was asked for once."""
    for _ in range(4):
        answer_all(folder / "batches")
        assert [job(shard).waiting for shard in BOTH] == [0, 0]
    result = job()
    assert not result.files and result.waiting == 0
    accepted, _ = check_whole(folder, 28)
    assert len(accepted) == 28
    files = (folder / "batches").glob("*-[0-9][0-9][0-9][0-9].jsonl")
    asked = collections.Counter(row["custom_id"] for path in files for row in lines(path))
    assert len(asked) == 3 * 28 and set(asked.values()) == {1}


def test_shards_in_turn_and_interleaved_lose_nothing(job, tmp_path, monkeypatch):
    first = [job(shard) for shard in BOTH]
    names = [[path.name for path in result.files] for result in first]
    assert names[0] == ["reasoning-0-of-2-0001.jsonl", "reasoning-0-of-2-0002.jsonl"]
    assert names[1] == ["reasoning-1-of-2-0001.jsonl", "reasoning-1-of-2-0002.jsonl"]
    assert [job(shard).waiting for shard in BOTH] == [14, 14]
    waiting = job()  # all of them, before they are answered: nothing is written again
    assert waiting.waiting == 28 and not waiting.files
    assert len(waiting.unanswered) == 4
    answer_all(tmp_path / "out/batches")

    close, between = batches.BatchFiles.close, []

    def other_first(files):
        """The other shard does its whole round while this one's files are half written."""
        if not between:
            between.append(None)
            between[0] = job(BOTH[1])
        return close(files)

    monkeypatch.setattr(batches.BatchFiles, "close", other_first)
    result = job(BOTH[0])
    monkeypatch.undo()
    monkeypatch.setattr(batches, "MAX_REQUESTS", 10)
    assert sum(len(lines(path)) for path in result.files) == 14
    assert sum(len(lines(path)) for path in between[0].files) == 14
    finish(job, tmp_path / "out")


@pytest.mark.parametrize("renamed", [0, 1, 2])
def test_a_killed_shard_goes_on(job, tmp_path, monkeypatch, renamed):
    """It is killed while its two files get their names, or before that is in the journal."""
    rename, done = pathlib.Path.rename, []

    def killed(path, target):
        if path.suffix == ".part" and path.parent.name == "batches":
            if len(done) == renamed:
                raise KeyboardInterrupt
            done.append(path)
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "rename", killed)
        if renamed == 2:
            patch.setattr(batches.Journal, "asked", lambda *_: (_ for _ in ()).throw(SystemExit))
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            job(BOTH[0])
    parts = sorted((tmp_path / "out/batches").glob("*.part"))
    assert len(parts) == 2 - renamed
    job(BOTH[1])
    assert sorted((tmp_path / "out/batches").glob("*.part")) == parts  # those of the other stay
    result = job(BOTH[0])
    written = sum(len(lines(path)) for path in result.files)
    assert written + result.waiting == 14 and result.waiting == (0, 10, 14)[renamed]
    # What was not in the journal counts as under way from now on.
    asked = [row["asked"] for row in lines(tmp_path / "out/replies-0-of-2.jsonl")]
    assert len(asked) == len(set(asked)) == 14
    assert not list((tmp_path / "out/batches").glob("*.part"))
    finish(job, tmp_path / "out")


def test_files_that_earlier_versions_of_shards_wrote_are_gone_on_with(job, tmp_path):
    folder = tmp_path / "out/batches"
    for number, name in enumerate(name for shard in BOTH for name in job(shard).files):
        name.rename(folder / f"reasoning-{number + 1:04d}.jsonl")  # one after the other
    assert [job(shard).waiting for shard in BOTH] == [14, 14]
    finish(job, tmp_path / "out")


def test_a_folder_that_cannot_be_written_is_one_line(job, tmp_path, monkeypatch):
    def full(self, line):
        raise OSError(28, "No space left on device", str(self.path))

    with monkeypatch.context() as patch:
        patch.setattr(batches._NewFile, "write", full)
        with pytest.raises(DataError, match="batches: can't be written .*No space left"):
            job()
    assert len(job().files) == 3


def test_the_same_questions_are_asked_about_by_one_process(job, tmp_path):
    folder = tmp_path / "out"
    job(BOTH[0])
    with Lock(folder / "replies-1-of-2.lock"):
        job(BOTH[0])  # has other questions
        for other in (None, Shard(0, 3)):
            with pytest.raises(ConfigError, match=r"out: another process writes to it \(\d+ on"):
                job(other)
    with Lock(folder / "replies.lock"):
        for shard in (None, BOTH[0]):
            with pytest.raises(ConfigError, match=r"out: another process writes to it \(\d+ on"):
                job(shard)
    (folder / "replies-1-of-2.lock").write_text(json.dumps({}))  # nobody's, of long ago
    os.utime(folder / "replies-1-of-2.lock", (0, 0))
    assert job().waiting == 14
    assert not list(folder.glob("*.lock"))


def test_a_second_process_with_other_settings_changes_no_selection(config, tmp_path, monkeypatch):
    source, folder = write_questions(tmp_path / "data", 28), tmp_path / "out"
    what = {"source": str(source), "image_root": str(source.parent), "output_dir": folder}
    choose, chosen = select.select_questions, []

    def other_meanwhile(questions, image_root, how):
        """Another process begins while this one chooses the questions."""
        with pytest.raises(ConfigError, match="out: another process writes to it"):
            build.batch(settings.read(config("", seed=1)), **what)
        with pytest.raises(ConfigError, match="selection: another process writes to it"):
            build.dry_run(settings.read(config("", seed=1)), **what)
        chosen.append(choose(questions, image_root, how))
        return chosen[0]

    monkeypatch.setattr(select, "_PATIENCE", 0.0)
    monkeypatch.setattr(select, "select_questions", other_meanwhile)
    build.batch(settings.read(config("")), **what)
    assert json.loads((folder / "selection/manifest.json").read_text())["how"]["seed"] == 0
    assert len(lines(folder / "selection/questions.jsonl")) == len(chosen[0].sft) == 28
    with pytest.raises(ConfigError, match="chosen otherwise"):
        build.dry_run(settings.read(config("", seed=1)), **what)
