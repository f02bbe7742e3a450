"""Time from image files to patches, compared with transformers' processor (the Pillow version).

Both read the same photo-like JPEGs, once in a plain loop in one thread, and once in the threads of
our training pipeline. Both decode and resize with Pillow and get the same pixels. For large files
this takes nearly all the time, so sizes are timed separately.
"""

import pathlib
import tempfile
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from benchmarks.side_by_side import Variant
from mirg_jax import defaults
from mirg_jax.data.batching import Item
from mirg_jax.data.examples import Example
from mirg_jax.data.images import ImagePatches, load_image, patchify
from mirg_jax.data.pipeline import batches
from mirg_jax.data.prompts import Encoded
from mirg_jax.models.vision import MEAN, STD

# Width and height; the first group is COCO's sizes, the source of most images in the data sets.
SIZES = {
    "up to 640x480": ((500, 375), (640, 480), (480, 640)),
    "1024x768": ((1024, 768),),
    "1600x1200": ((1600, 1200),),
}
FILES = 24  # per group of sizes
THREADS = 2
IMAGES = 4  # per example


def photo(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Detail at every scale, the less the finer, as in a photo."""
    pixels = rng.normal(0, 6, (height, width, 3))
    for level in range(1, 8):
        grid = rng.normal(0, 150 * 0.55**level, (3 * 2**level // 4 + 1, 2**level + 1, 3))
        for channel in range(3):
            layer = Image.fromarray(grid[..., channel].astype(np.float32))
            pixels[..., channel] += layer.resize((width, height), Image.Resampling.BICUBIC)
    return Image.fromarray(np.clip(pixels + 128, 0, 255).astype(np.uint8))


def _write_photos(folder: pathlib.Path, sizes: tuple, count: int) -> list[str]:
    rng = np.random.default_rng(0)
    names = []
    for number in range(count):
        width, height = sizes[number % len(sizes)]
        names.append(f"{width}x{height}_{number}.jpg")
        photo(width, height, rng).save(folder / names[-1], quality=90)
    return names


def _readers(folder: pathlib.Path) -> dict[str, Callable[[str], object]]:
    limits = {name: defaults.sft().data[name] for name in ("min_pixels", "max_pixels")}
    processor = Qwen2VLImageProcessorPil(**limits)

    def theirs(name: str):
        with Image.open(folder / name) as image:
            return processor(images=[image.convert("RGB")], return_tensors="np")

    return {
        "mirg_jax": lambda name: patchify(load_image(folder, name), **limits),
        "transformers": theirs,
    }


def _loop(read: Callable, names: list[str], _: int) -> Callable[[], None]:
    def run():
        for name in names:
            read(name)

    return run


def _pipeline(read: Callable, names: list[str], threads: int) -> Callable[[], None]:
    """One pass over all files by the training pipeline, with either reader."""
    examples = [
        Example(id=str(i), images=tuple(names[i : i + IMAGES]), question="", task="", targets=())
        for i in range(0, len(names), IMAGES)
    ]
    empty = np.zeros((0,), np.int32)
    text = Encoded(empty, np.zeros((0, 3), np.int32), (), 0)

    def prepare(example: Example) -> Item:
        return Item(text, tuple(map(read, example.images)))

    def run():
        size = len(examples)
        next(batches(examples, prepare, batch_size=size, seed=0, threads=threads))

    return run


def _difference(ours: ImagePatches, theirs) -> float:
    """The largest difference of our bytes, normalised, to their pixel values."""
    pixels = ours.patches.reshape(-1, 3, 1, 196) / 255
    pixels = (pixels - MEAN[:, None, None]) / STD[:, None, None]
    pixels = np.repeat(pixels, 2, axis=2).reshape(len(ours.patches), -1)
    return float(np.abs(pixels - theirs["pixel_values"]).max())


def _facts(read: dict[str, Callable], names: list[str]) -> dict:
    ours, theirs = ([read[way](name) for name in names] for way in read)
    return {
        "patches": sum(len(image.patches) for image in ours),
        "pixel_bytes": {
            "mirg_jax": sum(image.patches.nbytes for image in ours),
            "transformers": sum(image["pixel_values"].nbytes for image in theirs),
        },
        "difference": max(map(_difference, ours, theirs)),
    }


def input_pipeline(
    base: str, *, sizes: dict = SIZES, files: int = FILES, threads: int = THREADS
) -> Iterator[Variant]:
    """Images a second, and the bytes that their pixels then hold."""
    del base
    for group, shapes in sizes.items():
        with tempfile.TemporaryDirectory() as folder:
            names = _write_photos(pathlib.Path(folder), shapes, files)
            read = _readers(pathlib.Path(folder))
            facts = _facts(read, names)
            for name, make in {"a loop": _loop, f"{threads} threads": _pipeline}.items():
                ways = {way: make(reader, names, threads) for way, reader in read.items()}
                units = {"images": len(names)}
                yield Variant(f"{group}, {name}", ways, facts, units=units)


CASES = {"input_pipeline": input_pipeline}
