"""Files of a run in a bucket: lines in pieces, locks, outputs, and copies of models on the disk."""

import dataclasses
import json
import time
import types

import bucket as fake_bucket
import pytest

from mirg_jax.errors import CheckpointError, ConfigError, DataError
from mirg_jax.files import copies, lines, locks, outputs, pieces, places
from mirg_jax.runs import metrics

RUN, LOCK = "gs://bucket/run", "bucket/run/run.lock"


@pytest.fixture
def path(bucket):
    return places.of(f"{RUN}/metrics.jsonl")


def steps(path):
    return [row["step"] for row in lines.rows(path)]


def count_pieces(bucket):
    return sum(".jsonl.d/" in key for key in bucket.objects)


def test_every_line_is_there_when_it_is_written(path, bucket):
    assert not lines.exists(path)
    writer = lines.LineWriter(path)
    assert lines.exists(path) and steps(path) == []
    for step in range(5):
        writer.write({"step": step})
        assert steps(path) == [*range(step + 1)]
    again = lines.LineWriter(path)  # the first was killed
    assert steps(path) == [*range(5)] and count_pieces(bucket) == 0
    again.write({"step": 5})
    again.close()
    assert steps(path) == [*range(6)] and count_pieces(bucket) == 0


def test_a_kill_while_pieces_are_merged_doubles_no_line(path, bucket):
    writer = lines.LineWriter(path)
    for step in range(3):
        writer.write({"step": step})
    before = dict(bucket.objects)
    writer.close()
    bucket.objects |= {key: text for key, text in before.items() if ".jsonl.d/" in key}
    assert steps(path) == [0, 1, 2]
    again = lines.LineWriter(path)
    again.write({"step": 3})
    assert steps(path) == [0, 1, 2, 3]


def test_there_are_never_many_pieces(path, bucket, monkeypatch):
    monkeypatch.setattr(pieces, "_MOST", 3)
    writer = lines.LineWriter(path)
    for step in range(20):
        writer.write({"step": step})
        assert count_pieces(bucket) <= 3
    assert steps(path) == [*range(20)]


def test_a_line_that_could_not_be_written_can_be_written_later(path, bucket):
    writer = lines.LineWriter(path)
    writer.write({"step": 0})
    bucket.broken.add("POST")
    with pytest.raises(DataError, match=r"metrics.jsonl: cannot be written \(.*HTTP status 403"):
        writer.write({"step": 1})
    bucket.broken.clear()
    assert steps(path) == [0]
    writer.write({"step": 1})
    assert steps(path) == [0, 1]


@pytest.mark.parametrize("part", [".jsonl", ".jsonl.d/000000000000.jsonl"])
def test_a_file_that_can_t_be_read_is_one_line(part, path, bucket, monkeypatch):
    lines.LineWriter(path).write({"step": 0})
    refused, ask = path.name.removesuffix(".jsonl") + part, fake_bucket.Bucket._ask

    def ask_or_refuse(self, method, name, *args, **options):
        if name.endswith(f"run/{refused}") and options.get("alt") == "media":
            raise RuntimeError("HTTP status 403")
        return ask(self, method, name, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(fake_bucket.Bucket, "_ask", ask_or_refuse)
        for read in (steps, lambda path: metrics.held_out(path.parent)):
            with pytest.raises(DataError, match=r"cannot be read \(.*403\); check the connection"):
                read(path)
    bucket.broken.add("GET")
    with pytest.raises(DataError, match=r"cannot be read \(.*403\); check the connection"):
        lines.exists(path)
    with pytest.raises(DataError, match=r"cannot be removed \(.*403\); check the connection"):
        lines.remove(path)


def test_lines_that_come_at_once_share_a_piece(path, bucket):
    writer = lines.LineWriter(path, pause=0.3)
    for step in range(3):
        writer.write({"step": step})
    assert steps(path) == [0]
    time.sleep(0.3)
    writer.write({"step": 3})
    assert steps(path) == [*range(4)] and count_pieces(bucket) == 2
    writer.write({"step": 4})
    writer.close()
    assert steps(path) == [*range(5)]


def test_files_of_lines_are_replaced_and_removed_with_their_pieces(path, bucket):
    writer = lines.LineWriter(path)
    for step in range(4):
        writer.write({"step": step})
    lines.replace(path, [{"step": 0}, {"step": 1}])
    assert steps(path) == [0, 1] and count_pieces(bucket) == 0
    lines.remove(path)
    lines.remove(path)
    assert not lines.exists(path) and not bucket.objects
    with pytest.raises(FileNotFoundError):
        steps(path)


def test_a_folder_in_a_bucket_is_tried_and_left_empty(bucket):
    outputs.check_folder(places.of(RUN), "--workdir")
    assert bucket.requests and not bucket.objects
    bucket.broken.add("POST")
    with pytest.raises(ConfigError, match=r"--workdir='gs://bucket/run' cannot be written \(.*403"):
        outputs.check_folder(places.of(RUN), "--workdir")
    with pytest.raises(ConfigError, match="--workdir=hf://a/run: runs are written to .* gs://"):
        places.check_writable("hf://a/run", "--workdir")
    with pytest.raises(ConfigError, match="runs are written to"):  # with its package or without
        places.check_writable("s3://a/run", "--workdir")


def lock(bucket, **changes):
    """Puts a lock of another process into the bucket."""
    holder = dataclasses.asdict(locks.Holder.this()) | changes
    bucket.objects[LOCK] = json.dumps(holder).encode()


@pytest.fixture
def quick(monkeypatch):
    for name, seconds in (("_BEAT", 0.1), ("_LOOK", 0.05), ("_SILENCE", 1.0)):
        monkeypatch.setattr(locks, name, seconds)


def test_a_lock_in_a_bucket_is_held_by_one(bucket, quick):
    with locks.lock_of(places.of(f"{RUN}/run.lock")):
        with pytest.raises(ConfigError, match="gs://bucket/run: another process writes to it"):
            locks.lock_of(places.of(f"{RUN}/run.lock")).acquire()
        lock(bucket, machine="another", host="elsewhere")  # its signs of life go on
        with pytest.raises(ConfigError, match="on elsewhere"):
            locks.lock_of(places.of(f"{RUN}/run.lock")).acquire()
        bucket.objects[LOCK] = json.dumps(dataclasses.asdict(locks.Holder.this())).encode()
    bucket.objects.clear()


def test_a_lock_whose_request_was_sent_twice_is_held(bucket, monkeypatch):
    create = places.create

    def create_twice(place, data):
        create(place, data)  # whose answer was lost
        create(place, data)

    monkeypatch.setattr(places, "create", create_twice)
    with locks.lock_of(places.of(f"{RUN}/run.lock")):
        assert bucket.objects
    assert not bucket.objects


def test_locks_of_the_dead_are_taken_over(bucket, quick):
    lock(bucket, pid=2**22 + 1)
    with locks.lock_of(places.of(f"{RUN}/run.lock")):
        assert json.loads(bucket.objects[LOCK])["pid"] != 2**22 + 1
    assert not bucket.objects
    lock(bucket, machine="another", host="elsewhere")
    began = time.monotonic()
    with locks.lock_of(places.of(f"{RUN}/run.lock")):
        assert time.monotonic() - began >= 1
    assert not bucket.objects


def test_a_model_is_copied_once(bucket, monkeypatch):
    bucket.objects |= {
        "bucket/m/config.json": b"{}",
        "bucket/m/model.safetensors": b"x" * 100,
        "bucket/m/pytorch_model.bin": b"y",
        "bucket/m/deeper/config.json": b"{}",
    }
    copy = copies.copied(places.of("gs://bucket/m"))
    assert {path.name for path in copy.iterdir()} == {"config.json", "model.safetensors"}
    bucket.requests.clear()
    assert copies.copied(places.of("gs://bucket/m")) == copy
    assert not [name for _, name in bucket.requests if name.startswith("bucket/m")]
    bucket.objects["bucket/m/config.json"] = b"[]"
    bucket.generations["bucket/m/config.json"] = 2
    assert (copies.copied(places.of("gs://bucket/m")) / "config.json").read_text() == "[]"

    with pytest.raises(CheckpointError, match="gs://bucket/none: can't be read"):
        copies.copied(places.of("gs://bucket/none"))
    full = types.SimpleNamespace(free=0)
    monkeypatch.setattr(copies.shutil, "disk_usage", lambda _: full)
    bucket.objects["bucket/m/more.json"] = b"{}"
    with pytest.raises(CheckpointError, match=r"can't be copied .*0.0 GB are free\); free space"):
        copies.copied(places.of("gs://bucket/m"))
