"""Facts that results depend on: hashes of models and files, and descriptions of what changed."""

import functools
import hashlib
import io
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import fsspec
from PIL import ExifTags, Image

from mirg_jax.data.images import ImageRoot, Root, find_image
from mirg_jax.errors import CheckpointError, DataError
from mirg_jax.files import places
from mirg_jax.files.hashes import hash_file, hash_files
from mirg_jax.models.config import ModelConfig
from mirg_jax.models.json_fields import token_ids
from mirg_jax.runs import adapters, loading, run_folder

# The files beside the weights that an answer depends on.
_SMALL_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
)
_MODEL_HASH = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{64}")
_SAMPLE = 1024  # bytes
_IMAGE_PARTS = 16  # of an image's file, each of which is sampled
_IMAGES_KEPT = 4096  # hashes, since rows that follow one another share images


def hash_model(source: str | places.Place) -> str | None:
    """Returns a hash that tells a model's weights, config and tokenizer from others.

    It has two halves, `SAMPLES.CONTENT`. The first is made from samples of every tensor, as earlier
    versions recorded it (`agrees`). The second is of all bytes of the weights' files: a header,
    sizes and dates don't tell a tensor that was changed in a few places. That is some 0.5 GB a
    second and core, less than it takes to load and use the model, and the files are then in the
    system's cache. A cache of hashes by date and size would miss files that are copied with their
    dates. Of a LoRA run it includes the base model.

    `origin.fingerprint` is another, of the numbers on the devices in the dtype of training; this
    one is known before anything is loaded.

    Args:
      source: a run's folder, a checkpoint, a Hugging Face folder or a hub name.

    Returns:
      The hash; None if there is no such model.
    """
    try:
        saved = run_folder.find_run(source)
        folder = loading.model_folder(source)
    except CheckpointError:
        return None
    small = hashlib.sha256()
    for name in _SMALL_FILES:
        if (folder / name).is_file():
            small.update(f"{name} {hash_file(folder / name)}\n".encode())
    if ends := _end_tokens(folder):
        small.update(f"end tokens {ends}\n".encode())
    samples, content = small, small.copy()
    if saved is None:
        files = sorted(folder.glob("*.safetensors"))
        for path in files:
            _add_tensors(samples, path)
        content.update(hash_files((path.name, path) for path in files).encode())
        return f"{samples.hexdigest()}.{content.hexdigest()}"
    # Orbax names data files at random, and its manifest lists them.
    params = saved.folder / "params"
    files = _stored_files(params)
    for name, path in files:
        _add_file(samples, name, path)
    content.update(hash_files(files).encode())
    if record := adapters.read(saved.run):
        base = hash_model(record.base)
        for digest, part in ((samples, base and base.partition(".")[0]), (content, base)):
            digest.update(f"{part} {record.param_dtype} {record.lora}".encode())
    return f"{samples.hexdigest()}.{content.hexdigest()}"


def agrees(found: Any, now: Any) -> bool:
    """Returns whether a recorded fact is the one of now.

    Of a model's hash, earlier versions recorded only the first half.

    Args:
      found: the recorded fact.
      now: the fact of now.
    """
    if isinstance(found, str) and isinstance(now, str) and _MODEL_HASH.fullmatch(now):
        return found in (now, now.partition(".")[0])
    return found == now


class ImageHashes:
    """Tells images from others by samples of their files' content, wherever they lie.

    Small files are read whole. Dates don't count, nor do paths.
    """

    def __init__(self, root: Root):
        """
        Args:
          root: the image root. Where it applies EXIF orientations, an image that is turned differs
            from the same as stored.
        """
        self._root = ImageRoot.of(root)
        self._of_image = functools.lru_cache(_IMAGES_KEPT)(self._hash)

    def of(self, paths: Sequence[str]) -> str | None:
        """Returns a hash of some images in their order; None if one of them can't be read."""
        try:
            text = " ".join(map(self._of_image, paths))
        except (OSError, DataError):
            return None
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def _hash(self, path: str) -> str:
        (_, content), digest = find_image(self._root, path), hashlib.sha256()
        if self._root.apply_exif and _is_turned(content):
            digest.update(b"turned\n")
        with content.open("rb") if isinstance(content, pathlib.Path) else content as file:
            size = file.seek(0, os.SEEK_END)
            ends = [size * part // _IMAGE_PARTS for part in range(_IMAGE_PARTS + 1)]
            _add_samples(digest, file, "", list(zip(ends, ends[1:], strict=False)))
        return digest.hexdigest()


def _is_turned(file: pathlib.Path | io.BytesIO) -> bool:
    """Returns whether an image has an EXIF orientation other than upright."""
    try:
        with Image.open(file) as image:
            return image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception:  # Pillow raises many types; whoever loads the image says what is wrong
        return False


def describe_changes(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Describes how recorded facts differ from the wanted ones, such as "max_tokens was 8, is 40".

    A fact that the record lacks, as that of an earlier version may, is not compared.

    Args:
      found: the recorded facts.
      wanted: the facts of now.
    """
    changes = []
    for name, value in wanted.items():
        if name not in found or agrees(found[name], value):
            continue
        if isinstance(value, dict) and isinstance(found[name], dict):
            nothing = dict.fromkeys(value.keys() | found[name].keys())
            inner = describe_changes(nothing | found[name], nothing | value)
            changes += [f"{name}.{change}" for change in inner]
        else:
            changes.append(f"{name} was {_short(found[name])}, is {_short(value)}")
    return changes


def _end_tokens(folder: pathlib.Path) -> list[int]:
    """Returns the end tokens that generation_config.json names and config.json doesn't."""
    try:
        config = ModelConfig.from_folder(folder)
    except CheckpointError:  # whoever loads it says so
        return []
    own = token_ids(config.to_hf(), "eos_token_id", config.text.vocab_size)
    return sorted({*config.end_tokens} - {*own, config.bos_token_id})


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _add_tensors(digest, path: pathlib.Path) -> None:
    """Adds a safetensors file: its header, and samples of each tensor."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(length, 2**30)))
            offsets = [v["data_offsets"] for k, v in header.items() if k != "__metadata__"]
            parts = [(8 + length + begin, 8 + length + end) for begin, end in offsets]
        # Whoever loads it says so.
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            parts, length = [], 0
    with open(path, "rb") as file:
        _add_samples(digest, file, path.name, [(0, 8 + length), *sorted(parts)])


def _stored_files(params: places.Place) -> list[tuple[str, places.Place]]:
    """Returns the files of a checkpoint's parameters, each after its name there."""
    if isinstance(params, pathlib.Path):
        found = sorted(path for path in params.rglob("*") if path.is_file())
        return [(str(path.relative_to(params)), path) for path in found]
    system, where = fsspec.url_to_fs(str(params))
    found = sorted(map(pathlib.PurePosixPath, system.find(where)))
    names = [str(path.relative_to(where)) for path in found]
    return [(name, params / name) for name in names]


def _add_file(digest, name: str, path: places.Place) -> None:
    """Adds a whole file, on a disk or in a store, as `_add_samples` does."""
    if isinstance(path, pathlib.Path):
        with open(path, "rb") as file:
            return _add_samples(digest, file, name, [(0, path.stat().st_size)])
    system, where = fsspec.url_to_fs(str(path))
    size = system.size(where)
    digest.update(f"{name} {size}\n".encode())
    for start in (0, size // 2, max(0, size - _SAMPLE)):
        if end := min(size, start + _SAMPLE):
            digest.update(system.cat_file(where, start=start, end=end))


def _add_samples(digest, file: BinaryIO, name: str, parts: list[tuple[int, int]]) -> None:
    """Adds a file's name and size, and the beginning, middle and end of each of its parts."""
    digest.update(f"{name} {file.seek(0, os.SEEK_END)}\n".encode())
    for begin, end in parts:
        for start in (begin, (begin + end) // 2, max(begin, end - _SAMPLE)):
            file.seek(start)
            digest.update(file.read(min(_SAMPLE, end - start)))
