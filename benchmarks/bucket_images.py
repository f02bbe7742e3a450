"""Images a second from a disk, and from a store whose every request takes 50 ms.

The training pipeline reads the same photo-like JPEGs of 640x480 by several numbers of threads.
"""

import os
import pathlib
import tempfile
import time

import fsspec
from fsspec.spec import AbstractFileSystem

from benchmarks import side_by_side
from benchmarks.input_pipeline import IMAGES, _pipeline, _write_photos
from mirg_jax import defaults
from mirg_jax.data.images import load_image, patchify
from mirg_jax.files import places

LATENCY, FILES = 0.05, 96
THREADS = (2, 8, 32)


class Distant(AbstractFileSystem):
    """What fsspec takes for gs://: a folder on a disk, behind a slow network."""

    protocol = "gs"
    cachable = False
    folder, requests = pathlib.Path(), 0

    def cat_file(self, path, start=None, end=None, **_):
        """Returns a file's bytes."""
        type(self).requests += 1
        time.sleep(LATENCY)
        return (self.folder / pathlib.PurePath(path).name).read_bytes()

    def info(self, path, **_):
        """Returns what is known of a file."""
        type(self).requests += 1
        time.sleep(LATENCY)
        size = (self.folder / pathlib.PurePath(path).name).stat().st_size
        return {"name": path, "size": size, "type": "file"}


def run(repeats: int, path: pathlib.Path) -> None:
    """Reads all images `repeats` times in each way, and writes the best as JSON."""
    limits = {name: defaults.sft().data[name] for name in ("min_pixels", "max_pixels")}
    found = {}
    with tempfile.TemporaryDirectory() as name:
        Distant.folder = pathlib.Path(name)
        names = _write_photos(Distant.folder, ((640, 480),), FILES)
        fsspec.register_implementation("gs", Distant, clobber=True)
        for where, root in (("disk", Distant.folder), ("store", places.of("gs://bucket/images"))):
            for threads in THREADS:
                read = _pipeline(
                    lambda n, r=root: patchify(load_image(r, n), **limits), names, threads
                )
                seconds, Distant.requests = [], 0
                for _ in range(repeats):
                    start = time.perf_counter()
                    read()
                    seconds.append(time.perf_counter() - start)
                row = {
                    "images_a_second": FILES / min(seconds),
                    "requests_an_image": Distant.requests / FILES / repeats,
                }
                found[f"{where}, {threads} threads"] = row
                print(f"{where}, {threads} threads: {row['images_a_second']:.0f} images a second")
    result = {"case": "bucket_images"} | side_by_side.environment()
    result |= {"cores": os.cpu_count(), "latency_seconds": LATENCY, "files": FILES}
    result |= {"repeats": repeats, "images_an_example": IMAGES, "variants": found}
    side_by_side.write(path, result)
