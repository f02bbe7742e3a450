"""Data in a bucket: files of rows, images by name, and a cache on the disk."""

import concurrent.futures
import time

import fsspec
import pytest
from PIL import Image

from mirg_jax.data.examples import read_examples
from mirg_jax.data.images import ImageRoot, image_size, load_image, resolve_image
from mirg_jax.errors import ConfigError, DataError, UserError
from mirg_jax.files import places
from mirg_jax.mig_bench.benchmark import load_benchmark
from mirg_jax.runs import facts

ROOT = "gs://bucket/data"


@pytest.fixture
def put(bucket, tmp_path):
    """Puts a picture of a colour into the bucket."""

    def put(name: str, colour: str = "red") -> None:
        Image.new("RGB", (40, 30), colour).save(tmp_path / "one.png")
        bucket.objects[f"bucket/{name}"] = (tmp_path / "one.png").read_bytes()

    return put


def test_rows_are_read_as_from_a_disk(scenes, bucket):
    for name in ("sft.jsonl", "eval.json"):
        bucket.objects[f"bucket/{name}"] = b"\xef\xbb\xbf" + (scenes / name).read_bytes()
    assert read_examples("gs://bucket/sft.jsonl") == read_examples(scenes / "sft.jsonl")
    assert load_benchmark("gs://bucket/eval.json") == load_benchmark(scenes / "eval.json")
    bucket.objects["bucket/same"] = (scenes / "eval.json").read_bytes()
    assert facts.hash_file("gs://bucket/same") == facts.hash_file(scenes / "eval.json")
    bucket.objects["bucket/latin"] = '["é"]'.encode("latin-1")
    with pytest.raises(DataError, match="gs://bucket/latin: not UTF-8 text"):
        read_examples("gs://bucket/latin")


def test_what_cannot_be_read_is_said_in_a_line(bucket):
    for read in (read_examples, load_benchmark, facts.hash_file):
        with pytest.raises(DataError, match=r"gs://bucket/no: cannot be read \(No such file"):
            read("gs://bucket/no")
    bucket.broken.add("GET")
    with pytest.raises(DataError, match=r"gs://bucket/no: .*HTTP status 403.*check the path"):
        read_examples("gs://bucket/no")
    with pytest.raises(ConfigError, match="gs://: names no bucket"):
        read_examples("gs://")


def test_a_store_whose_package_is_missing(monkeypatch):
    def missing(scheme):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(ConfigError, match="--x=s3://b/f: .*Install s3fs to access S3.*install it"):
        places.check("s3://b/f", "--x")


@pytest.mark.parametrize("name", ["a/x.png", "a/../a/x.png", f"{ROOT}/a/x.png"])
def test_images_are_read_by_name(put, name):
    put("data/a/x.png")
    assert load_image(ROOT, name).size == image_size(ROOT, name) == (40, 30)


@pytest.mark.parametrize("root", ["gs://bucket/data", "gs://bucket/data/MIG-Bench"])
def test_the_root_may_be_the_data_set_or_its_parent(put, bucket, root):
    put("data/MIG-Bench/a/x.png")
    bucket.requests.clear()
    assert load_image(root, "MIG-Bench/a/x.png").size == (40, 30)
    assert len(bucket.requests) == 1  # the likelier place first
    with pytest.raises(DataError, match="no such file"):
        load_image(root, "MIG-Bench/a/y.png")


@pytest.mark.parametrize(
    "name", ["../secret.png", "a/../../secret.png", "/bucket/secret.png", "gs://bucket/secret.png",
             "gs://bucket/data/../secret.png", "gs://bucket/database/secret.png", "s3://data/x"]
)  # fmt: skip
def test_no_name_leads_out_of_the_root(put, bucket, name):
    for key in ("secret.png", "database/secret.png", "data/../secret.png"):
        put(key)
    bucket.requests.clear()
    for read in (load_image, image_size):
        with pytest.raises(DataError, match="leaves the image root"):
            read(ROOT, name)
    assert not bucket.requests


def test_bad_images_are_told_as_on_a_disk(put, bucket):
    bucket.objects |= {"bucket/data/empty.png": b"", "bucket/data/text.png": b"no image"}
    for name, what in (("empty.png", "the file is empty"), ("text.png", "not an image of a known")):
        with pytest.raises(DataError, match=f"image '{ROOT}/{name}': {what}"):
            load_image(ROOT, name)
    bucket.broken.add("GET")
    with pytest.raises(UserError, match="store can't be read .*HTTP status 403") as raised:
        load_image(ROOT, "text.png")
    assert not isinstance(raised.value, DataError)  # for which the row would be left out
    with pytest.raises(ConfigError, match="is a URL where a path is needed"):
        resolve_image(ROOT, "text.png")  # for a caller that needs the file itself


def test_a_cache_keeps_images_on_the_disk(put, bucket, tmp_path):
    put("data/x.png", "red")
    put("data/y.png", "blue")
    root = ImageRoot(places.of(ROOT), cache=str(tmp_path / "cache"))
    first = [load_image(root, name).tobytes() for name in ("x.png", "y.png")]
    bucket.requests.clear()
    again = [load_image(root, name).tobytes() for name in ("x.png", "y.png")]
    assert first == again and first[0] != first[1] and not bucket.requests
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_a_cache_that_is_full_is_told_once(put, tmp_path, capsys):
    put("data/x.png")
    (tmp_path / "file").write_text("")
    root = ImageRoot(places.of(ROOT), cache=str(tmp_path / "file"))
    for _ in range(2):
        assert load_image(root, "x.png").size == (40, 30)
    assert capsys.readouterr().err.count("keeps no further images") == 1


def test_threads_wait_for_the_store_side_by_side(put, bucket):
    for number in range(8):
        put(f"data/{number}.png")
    bucket.delay = 0.2
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: load_image(ROOT, f"{number}.png"), range(8)))
    assert time.monotonic() - began < 8 * 0.2
