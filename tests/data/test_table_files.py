"""Rows and images in Parquet and Arrow files, as pyarrow and the package `datasets` write them."""

import io
import json
import pathlib
import random
import sys

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from data_rows import TRAJECTORY
from PIL import Image

from mirg_jax.data import tables
from mirg_jax.data.examples import key_of, read_examples
from mirg_jax.data.image_hashes import ImageHashes
from mirg_jax.data.images import image_size, load_image, resolve_image
from mirg_jax.data.row_files import hash_rows
from mirg_jax.errors import DataError
from mirg_jax.mig_bench.benchmark import load_benchmark

ANSWER = "It's in the second image. <|box_start|>(10,20),(300,400)<|box_end|>"
TEXT = datasets.Value("string")
FEATURES = datasets.Features(
    {
        "id": TEXT,
        "images": datasets.List(datasets.Image()),
        "messages": datasets.List({"role": TEXT, "content": TEXT}),
    }
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache; and no bars of `datasets`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    return tmp_path / "cache/mirg_jax/tables"


def png(level: int) -> bytes:
    """A grey picture, as a file."""
    buffer = io.BytesIO()
    Image.new("L", (30 + level, 20), level).save(buffer, "PNG")
    return buffer.getvalue()


def row(n: int) -> dict:
    said = [("user", "<image><image>Where is it?"), ("assistant", ANSWER)]
    return {
        "id": f"r{n}",
        "images": [{"bytes": png(2 * n + each), "path": f"{each}.png"} for each in (0, 1)],
        "messages": [{"role": role, "content": content} for role, content in said],
    }


@pytest.fixture
def made():
    return datasets.Dataset.from_list([row(n) for n in range(5)], features=FEATURES)


def levels(path, root) -> list[list[int]]:
    """The grey of every image of every example, which must all be there."""
    examples, rejected = read_examples(path)
    assert not rejected and [each.id for each in examples] == [f"r{n}" for n in range(5)]
    assert all(each.targets[0].box == (10, 20, 300, 400) for each in examples)
    pictures = [[load_image(root, name) for name in each.images] for each in examples]
    for example, own in zip(examples, pictures, strict=True):
        assert [image_size(root, name) for name in example.images] == [each.size for each in own]
    return [[np.asarray(each)[0, 0, 0] for each in own] for own in pictures]


ALL = [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


def test_a_data_set_as_it_is_saved(made, tmp_path):
    made.save_to_disk(tmp_path / "saved", num_shards=2)
    assert levels(tmp_path / "saved", tmp_path) == ALL
    assert levels(tmp_path / "saved", tmp_path / "saved") == ALL
    datasets.DatasetDict(train=made, test=made).save_to_disk(tmp_path / "both")
    with pytest.raises(DataError, match="several data sets; give one of .*/both/train, .*/test"):
        read_examples(tmp_path / "both")
    assert levels(tmp_path / "both/train", tmp_path) == ALL
    assert hash_rows(tmp_path / "both/train") == hash_rows(tmp_path / "both/test")
    assert hash_rows(tmp_path / "both/train") != hash_rows(tmp_path / "saved")


def test_parquet_is_unpacked_once(made, tmp_path, cache, capsys):
    path = tmp_path / "rows.parquet"
    made.to_parquet(path)
    assert levels(path, tmp_path) == ALL
    assert "rows.parquet: its 5 rows are unpacked to" in capsys.readouterr().err
    tables._open.cache_clear()
    assert levels(path, tmp_path) == ALL and "unpacked" not in capsys.readouterr().err
    assert len(list(cache.iterdir())) == 1  # and no half of one
    made.select([4, 3, 2, 1, 0]).to_parquet(path)
    assert read_examples(path)[0][0].id == "r4"  # not what was unpacked before


def test_tables_of_several_files(made, tmp_path):
    folder = tmp_path / "hub/data"
    folder.mkdir(parents=True)
    for n in range(2):
        made.shard(2, n, contiguous=True).to_parquet(folder / f"train-0000{n}-of-00002.parquet")
    assert levels(tmp_path / "hub", tmp_path) == ALL
    made.to_parquet(folder / "test-00000-of-00001.parquet")
    with pytest.raises(DataError, match=r"several tables; give one of '.*/data/test\*.parquet', "):
        read_examples(tmp_path / "hub")
    assert levels(f"{folder}/train*.parquet", tmp_path) == ALL
    with pytest.raises(DataError, match="no file is named so; check the path"):
        read_examples(f"{folder}/trian*.parquet")


def test_tables_without_images_hold_the_same_rows(tmp_path, cache):
    (tmp_path / "a.json").write_text(json.dumps([TRAJECTORY, TRAJECTORY | {"id": "b"}]))
    table = pyarrow.Table.from_pylist([TRAJECTORY, TRAJECTORY | {"id": "b"}])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    for name, new in (("s", pyarrow.ipc.new_stream), ("f", pyarrow.ipc.new_file)):
        with new(tmp_path / f"{name}.arrow", table.schema) as file:
            file.write_table(table)
    for name in ("a.parquet", "s.arrow", "f.arrow"):
        assert read_examples(tmp_path / name) == read_examples(tmp_path / "a.json")
    assert not cache.exists()


def in_parts(row: dict) -> dict:
    """The same row with its images in the question; the columns of parts hold nulls."""
    none = {"text": None, "image": None}
    asked = [none | {"type": "image", "image": each} for each in row["images"]]
    asked.append(none | {"type": "text", "text": "Where?"})
    said = [none | {"type": "text", "text": ANSWER}]
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    return {"id": row["id"], "images": None, "messages": messages}


@pytest.mark.parametrize(
    "change",
    [
        lambda row: row | {"images": [each["bytes"] for each in row["images"]]},  # bytes alone
        lambda row: (
            {"id": "r0", "question": "?", "targets": [{"image": 2, "box": [1, 2, 3, 4]}]}
            | {"images": row["images"]}
        ),
        in_parts,
    ],
)
def test_where_images_may_stand(tmp_path, change):
    table = pyarrow.Table.from_pylist([change(row(0))])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    (example,), rejected = read_examples(tmp_path / "a.parquet")
    assert not rejected
    assert [load_image(tmp_path, name).size for name in example.images] == [(30, 20), (31, 20)]


def test_an_example_is_the_same_wherever_its_table_lies(made, tmp_path):
    keys = []
    for name in ("one", "two"):
        made.save_to_disk(tmp_path / name)
        examples, _ = read_examples(tmp_path / name)
        keys.append([key_of(each) for each in examples])
    assert keys[0] == keys[1] and len(set(keys[0])) == 5
    place = "data-00000-of-00001.arrow#row=3/images/1/bytes"
    hashes = ImageHashes(tmp_path)
    one, two = (hashes.of([f"{tmp_path}/{name}/{place}"]) for name in ("one", "two"))
    assert one == two is not None


def test_images_in_a_table_do_not_leave_the_root(made, tmp_path):
    made.save_to_disk(tmp_path / "saved")
    inside, outside = tmp_path / "root", tmp_path / "saved/data-00000-of-00001.arrow"
    inside.mkdir()
    (inside / "link.arrow").symlink_to(outside)
    for table in (outside, inside / "link.arrow", "link.arrow", f"../saved/{outside.name}"):
        with pytest.raises(DataError, match="doesn't lie below the image root .*give its folder"):
            load_image(inside, f"{table}#row=0/images/0/bytes")
    with pytest.raises(DataError, match="lies in a table, and files are needed here"):
        resolve_image(tmp_path, f"{outside}#row=0/images/0/bytes")
    # Nor do the paths that stand beside bytes that are null.
    images = [{"bytes": None, "path": str(outside)}, {"bytes": png(1), "path": None}]
    null = row(0) | {"images": images}
    table = pyarrow.Table.from_pylist([null])
    pyarrow.parquet.write_table(table, inside / "a.parquet")
    (example,), _ = read_examples(inside / "a.parquet")
    with pytest.raises(DataError, match="leaves the image root"):
        load_image(inside, example.images[0])
    assert load_image(inside, example.images[1]).size == (31, 20)


@pytest.mark.parametrize(
    "name, reason",
    [
        ("saved/data-00000-of-00001.arrow#row=9/images/0/bytes", "has none there"),
        ("saved/data-00000-of-00001.arrow#row=0/images/2/bytes", "has none there"),
        ("saved/data-00000-of-00001.arrow#row=0/images/x/bytes", "has none there"),
        ("saved/data-00000-of-00001.arrow#row=0/id", "has none there"),
        ("saved/data-00000-of-00001.arrow#row=0/none", "has none there"),
        ("saved/state.json#row=0/none", "can't be read as Parquet or Arrow"),
        ("saved/none.arrow#row=0/images", "can't be read as Parquet or Arrow .*No such file"),
    ],
)
def test_names_of_nothing(made, tmp_path, name, reason):
    made.save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match=reason) as caught:
        load_image(tmp_path, name)
    assert "\n" not in str(caught.value)


def spoiled(content: bytes):
    """The same file, cut and with some bytes changed."""
    for share in (0.2, 0.5, 0.99):
        yield content[: int(len(content) * share)]
    for seed in range(30):
        rng = random.Random(seed)
        at = rng.randrange(8, len(content) - 40)
        yield content[:at] + rng.randbytes(40) + content[at + 40 :]


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_damaged_tables_are_told_in_a_line(made, tmp_path, form):
    made.to_parquet(tmp_path / "rows.parquet")
    made.save_to_disk(tmp_path / "saved")
    (path,) = tmp_path.rglob(f"*.{form}")
    told = 0
    for content in spoiled(path.read_bytes()):
        tables._open.cache_clear()
        path.write_bytes(content)
        try:
            for example in read_examples(path)[0]:
                for name in example.images:
                    load_image(tmp_path, name)
        except DataError as error:
            told += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert told > 10


def test_folders_that_hold_no_table(tmp_path, bucket):
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../a.arrow"}]}))
    with pytest.raises(DataError, match="state.json: lists no files"):
        read_examples(tmp_path)
    (tmp_path / "state.json").unlink()
    (tmp_path / "rows.json").write_text("[]")
    with pytest.raises(DataError, match="a folder without Parquet or Arrow files.*give a file"):
        read_examples(tmp_path)
    empty = pyarrow.table({"id": pyarrow.array([], "string")})
    pyarrow.parquet.write_table(empty, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="the table is empty"):
        read_examples(tmp_path)
    with pytest.raises(DataError, match="gs://bucket/a.parquet: tables are read from disks alone"):
        read_examples("gs://bucket/a.parquet")


def test_without_pyarrow_its_command_is_named(made, tmp_path, monkeypatch):
    made.to_parquet(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"a.parquet: pyarrow is needed .*pip install .*\[tables\]"):
        read_examples(tmp_path / "a.parquet")


def test_without_room_for_what_is_unpacked(made, tmp_path, cache):
    made.to_parquet(tmp_path / "a.parquet")
    cache.parent.mkdir(parents=True)
    cache.write_text("in the way")
    with pytest.raises(DataError, match="a.parquet: can't be unpacked to .*set XDG_CACHE_HOME"):
        read_examples(tmp_path / "a.parquet")


def test_a_benchmark_may_be_a_table(tmp_path):
    rows = [
        {"task": "diff", "question": "What differs?", "answer": [0.1, 0.2, 0.3, 0.4]}
        | {"images": row(n)["images"]}
        for n in range(2)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    first, second = load_benchmark(tmp_path / "a.parquet")
    assert first.answer == (0.1, 0.2, 0.3, 0.4)
    assert load_image(tmp_path, second.images[1]).size == (33, 20)
    assert pathlib.Path(second.images[1].partition("#")[0]) == tmp_path / "a.parquet"
