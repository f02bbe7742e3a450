"""Hashes of models and files."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from mirg_jax.data.images import ImageRoot
from mirg_jax.errors import DataError
from mirg_jax.files import hashes
from mirg_jax.runs import facts


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save(folder)
    return folder


def save(folder, **changes):
    tensors = {"a": np.zeros((500, 30), np.float32), "b": np.ones(3, np.float32)} | changes
    save_file(tensors, folder / "model.safetensors")


def test_a_copy_is_the_same_model(model, tmp_path):
    before = facts.hash_model(model)
    shutil.copytree(model, tmp_path / "copy")
    os.utime(tmp_path / "copy/model.safetensors", (0, 0))
    (tmp_path / "copy/README.md").write_text("words")
    assert facts.hash_model(tmp_path / "copy") == before
    assert facts.hash_model(tmp_path / "none") is None


@pytest.mark.parametrize("place", [(0, 0), (250, 0), (499, 29), (100, 7), (333, 1)])
def test_each_tensor_counts(model, place):
    before = facts.hash_model(model)
    changed = np.zeros((500, 30), np.float32)
    changed[place] = 1e-3
    save(model, a=changed)
    assert facts.hash_model(model) != before
    save(model)
    assert facts.hash_model(model) == before
    save(model, b=np.full(3, 1.1, np.float32))
    assert facts.hash_model(model) != before


def test_a_run_is_another_model_when_it_was_trained_anew(model, tmp_path):
    run = tmp_path / "run"
    params = run / "checkpoints/7/params/d"
    params.mkdir(parents=True)
    shutil.copytree(model, run / "model")
    (params / "0123abcd").write_bytes(b"x" * 50_000)
    before = facts.hash_model(run)
    assert before == facts.hash_model(run / "checkpoints/7") is not None
    (params / "0123abcd").rename(params / "4567abcd")  # Orbax's names are random
    assert facts.hash_model(run) != before
    (params / "4567abcd").write_bytes(b"x" * 10_000 + b"y" + b"x" * 39_999)  # between samples
    (params / "4567abcd").rename(params / "0123abcd")
    changed = facts.hash_model(run)
    assert changed != before and changed.partition(".")[0] == before.partition(".")[0]
    (params / "0123abcd").write_bytes(b"x" * 50_000)
    assert facts.hash_model(run) == before
    # Adapters are of their base.
    (params / "0123abcd").rename(params / "4567abcd")
    (params / "4567abcd").rename(params / "0123abcd")
    lora = {"rank": 4, "alpha": 8, "targets": ["q_proj"], "tower": False}
    record = {"base": str(model), "param_dtype": "float32", "lora": lora}
    (run / "lora.json").write_text(json.dumps(record))
    adapters = facts.hash_model(run)
    assert adapters != before
    save(model, b=np.zeros(3, np.float32))
    assert facts.hash_model(run) != adapters


def test_a_hash_of_samples_that_an_earlier_version_recorded_agrees(model):
    now = facts.hash_model(model)
    samples = now.partition(".")[0]
    assert facts.agrees(samples, now) and facts.agrees(now, now)
    assert not facts.agrees(now.partition(".")[2], now) and not facts.agrees(None, now)
    assert facts.describe_changes({"start": samples}, {"start": now}) == []
    save(model, a=np.ones((500, 30), np.float32))
    other = facts.hash_model(model)
    assert not facts.agrees(samples, other)
    assert len(facts.describe_changes({"start": samples}, {"start": other})) == 1
    assert not facts.agrees("a", "a.b")  # no hash of a model


def test_parts_of_files_count_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(hashes, "_PART", 100)
    contents = [b"a" * 100 + b"b" * 100 + b"c", b"b" * 100 + b"a" * 100 + b"c", b"a" * 100, b""]
    found = set()
    for content in contents:
        (tmp_path / "file").write_bytes(content)
        found.add(hashes.hash_files([("name", tmp_path / "file")]))
    found.add(hashes.hash_files([("other", tmp_path / "file")]))
    found.add(hashes.hash_files([("name", tmp_path / "file")] * 2))
    assert len(found) == 6


@pytest.mark.parametrize("size", [1, 700, 30_000, 2_000_000])
def test_images_are_told_apart_by_content(size, tmp_path):
    content = bytearray(n % 251 for n in range(size))
    path = tmp_path / "a.png"
    path.write_bytes(content)
    before = facts.ImageHashes(tmp_path).of(["a.png"])
    shutil.copy(path, tmp_path / "b.png")
    os.utime(tmp_path / "b.png", (0, 0))
    assert facts.ImageHashes(tmp_path).of(["b.png"]) == before
    for place in (0, size // 2, size - 1):
        path.write_bytes(content[:place] + bytes([255]) + content[place + 1 :])
        assert facts.ImageHashes(tmp_path).of(["a.png"]) != before
    both = facts.ImageHashes(tmp_path).of(["a.png", "b.png"])
    assert both != facts.ImageHashes(tmp_path).of(["b.png", "a.png"])
    assert facts.ImageHashes(tmp_path).of(["b.png", "../b.png"]) is None
    assert facts.ImageHashes(tmp_path).of(["none.png"]) is None


def test_an_image_that_is_turned_is_another(tmp_path):
    for name, orientation in (("plain.jpg", 1), ("turned.jpg", 6)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new("RGB", (40, 20)).save(tmp_path / name, exif=exif)
    stored, upright = (
        facts.ImageHashes(ImageRoot(tmp_path, apply_exif=turns)) for turns in (False, True)
    )
    assert stored.of(["plain.jpg"]) == upright.of(["plain.jpg"])
    assert stored.of(["turned.jpg"]) != upright.of(["turned.jpg"])


def test_changes_in_words():
    found = {"a": 1, "b": {"c": [1, 2], "d": 3}, "gone": 5}
    wanted = {"a": 2, "b": {"c": [1, 2], "e": 4}, "new": 6}
    told = facts.describe_changes(found, wanted)
    assert sorted(told) == ["a was 1, is 2", "b.d was 3, is null", "b.e was null, is 4"]
    assert facts.describe_changes({"a": "x" * 999}, {"a": 1})[0].endswith("..., is 1")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="none.json: cannot be read"):
        facts.hash_file(tmp_path / "none.json")


def test_further_end_tokens_make_another_model(tmp_path, tiny_model):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    before, own = facts.hash_model(model), json.loads((model / "config.json").read_text())
    for ends, other in (([own["eos_token_id"], own["bos_token_id"]], False), ([7], True)):
        (model / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        assert (facts.hash_model(model) != before) == other
