"""Runs whose folder, data and model are in a bucket: the same numbers as on a disk."""

import random
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import together
from conftest import REPOSITORY, scalars, train

from mirg_jax.errors import CheckpointError, ConfigError, SaveError
from mirg_jax.files import places
from mirg_jax.runs import facts, metrics, run_folder
from mirg_jax.runs.checkpoints import Checkpoints
from mirg_jax.runs.loading import load_model, stored_dtype
from mirg_jax.sharding import make_mesh
from mirg_jax.training import start

RUN = "gs://bucket/runs/sft"
# A binary in a process of its own, for which gs:// is the bucket of the test.
BINARY = """
import runpy, sys
import bucket
from orbax.checkpoint._src.path import gcs_utils
bucket.install()
gcs_utils.is_hierarchical_namespace_enabled = lambda path: False
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def upload(bucket):
    def upload(folder, name: str) -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                bucket.objects[f"bucket/{name}/{path.relative_to(folder)}"] = path.read_bytes()

    return upload


class Killed(BaseException):
    """Stands for the end of a process."""


def test_a_run_in_a_bucket_is_resumed_and_ends_as_on_a_disk(
    recipe, tiny_model, scenes, upload, bucket, tmp_path, monkeypatch
):
    train(recipe("sft"), tmp_path)
    upload(tiny_model, "model")
    upload(scenes, "data")
    config = recipe("sft")
    config.model.path = "gs://bucket/model"
    config.data.image_root = "gs://bucket/data"
    config.data.train_json = "gs://bucket/data/sft.jsonl"
    write = metrics.Metrics.write

    def write_and_end(self, step, *args, **kwargs):
        write(self, step, *args, **kwargs)
        if step == 3:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(metrics.Metrics, "write", write_and_end)
        train(config, places.of(RUN))
    assert [row["step"] for row in metrics.read(RUN)] == [1, 2, 3]
    train(config, places.of(RUN))
    assert scalars(RUN) == scalars(tmp_path)
    names = {key.split("/")[3] for key in bucket.objects if key.startswith("bucket/runs/sft/")}
    assert {"config.json", "origin.json", "metrics.jsonl", "model", "checkpoints"} <= names
    assert not names & {"run.lock", "run.lock.alive", "metrics.jsonl.d"}

    saved = run_folder.find_run(RUN)
    assert (saved.step, str(saved.folder)) == (4, f"{RUN}/checkpoints/4")
    assert stored_dtype(RUN) == stored_dtype(tmp_path)
    upload(tmp_path, "copy")
    assert facts.hash_model("gs://bucket/copy") == facts.hash_model(tmp_path)
    ours, theirs = (load_model(source, make_mesh()).params for source in (RUN, tmp_path))
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_what_can_t_be_reached_is_neither_new_nor_damaged(bucket):
    bucket.objects["bucket/runs/sft/checkpoints/4/commit_success.txt"] = b""
    assert run_folder.find_run(RUN).step == 4
    for error in (RuntimeError("status 503"), OSError("no route")):
        with (
            pytest.raises(CheckpointError, match="can't be read .*(503|no route).*credentials"),
            run_folder.reading(places.of(f"{RUN}/checkpoints/4"), "model", ""),
        ):
            raise error
    bucket.broken.add("GET")
    for source in (RUN, f"{RUN}/best", f"{RUN}/checkpoints/4"):
        with pytest.raises(CheckpointError, match=r"can't be read \(.*403\); check the address"):
            run_folder.find_run(source)
    with (
        pytest.raises(CheckpointError, match=r"can't be read \(.*403\)"),
        run_folder.reading(places.of(f"{RUN}/checkpoints/4"), "model", ""),
    ):
        raise ValueError("UNAVAILABLE")
    with pytest.raises(ConfigError, match=r"--workdir=.*cannot be read \(.*403\); check the conn"):
        start.check_folder(places.of(RUN))


def test_whatever_the_client_of_a_store_raises_is_a_failed_save(bucket, tmp_path):
    class HttpError(Exception):
        pass

    stored, there = (Checkpoints.__new__(Checkpoints) for _ in range(2))
    stored._folder, there._folder = places.of(f"{RUN}/checkpoints"), tmp_path
    bucket.objects["bucket/runs/sft/checkpoints/4/commit_success.txt"] = b""
    with pytest.raises(SaveError, match=r"\(status 503\); check the conn.* from step 4"):
        with stored._writing():
            raise HttpError("status 503")
    with pytest.raises(HttpError), there._writing():
        raise HttpError("a bug")


def test_a_lost_connection_is_not_taken_for_an_empty_folder(bucket, monkeypatch):
    bucket.objects["bucket/runs/sft/checkpoints/4/commit_success.txt"] = b""
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match="can't be read .*refused"):
        run_folder.find_run(RUN)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_kills_at_any_moment_lose_nothing_in_a_bucket(
    kind, tiny_model, scenes, upload, bucket, tmp_path
):
    script = REPOSITORY / "scripts" / f"train_{kind}.py"
    changes = {"num_steps": 6, "checkpoint.every": 1}
    whole = together.recipe(kind, tiny_model, scenes, **changes)
    together.run(f"train_{kind}", *whole, f"--workdir={tmp_path}")
    upload(tiny_model, "model")
    upload(scenes, "data")
    flags = together.recipe(kind, "gs://bucket/model", places.of("gs://bucket/data"), **changes)

    def start(workdir: str) -> subprocess.Popen:
        return subprocess.Popen(
            [*map(str, [sys.executable, "-c", BINARY, script, *flags, f"--workdir={workdir}"])],
            env=together.environment() | bucket.environment(),
            cwd=REPOSITORY,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(process: subprocess.Popen) -> None:
        _, said = process.communicate(timeout=900)
        assert process.returncode == 0, said

    finish(start("gs://bucket/runs/whole"))
    requests = len(bucket.requests)
    draw, killed = random.Random(0), 0
    for _ in range(10):
        moment = len(bucket.requests) + draw.uniform(0.1, 0.6) * requests
        process = start(RUN)
        while process.poll() is None and len(bucket.requests) < moment:
            time.sleep(0.01)
        if process.poll() is not None:
            break
        process.kill()
        process.communicate()
        killed += 1
    finish(start(RUN))
    assert killed >= 5
    assert scalars(RUN) == scalars(tmp_path)
