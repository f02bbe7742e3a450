"""Facts that results depend on: hashes of models and files, and descriptions of what changed."""

import functools
import hashlib
import io
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import fsspec
from etils import epath
from PIL import ExifTags, Image

from mirg_jax.data.images import ImageRoot, Root, find_image
from mirg_jax.errors import CheckpointError, DataError
from mirg_jax.files import places
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
_SAMPLE = 1024  # bytes
_IMAGE_PARTS = 16  # of an image's file, each of which is sampled
_IMAGES_KEPT = 4096  # hashes, since rows that follow one another share images


def hash_file(path: str | places.Place) -> str:
    """Returns the SHA-256 hash of a file's content.

    Raises:
      DataError: if the file can't be read.
    """
    try:
        if places.is_url(path):
            return hashlib.sha256(places.read_bytes(path)).hexdigest()
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from None


def hash_model(source: str | places.Place) -> str | None:
    """Returns a hash that tells a model's weights, config and tokenizer from others.

    It is made from samples of every tensor, so that it takes a second for large models too. Of a
    LoRA run it includes the base model.

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
    digest = hashlib.sha256()
    for name in _SMALL_FILES:
        if (folder / name).is_file():
            digest.update(f"{name} {hash_file(folder / name)}\n".encode())
    if ends := _end_tokens(folder):
        digest.update(f"end tokens {ends}\n".encode())
    if saved is None:
        for path in sorted(folder.glob("*.safetensors")):
            _add_tensors(digest, path)
        return digest.hexdigest()
    params = saved.folder / "params"
    if not isinstance(params, pathlib.Path):
        _add_stored(digest, params)
    else:
        for path in sorted(path for path in params.rglob("*") if path.is_file()):
            # Orbax names data files at random, and its manifest lists them.
            name = str(path.relative_to(params))
            with open(path, "rb") as file:
                _add_samples(digest, file, name, [(0, path.stat().st_size)])
    if record := adapters.read(saved.run):
        digest.update(f"{hash_model(record.base)} {record.param_dtype} {record.lora}".encode())
    return digest.hexdigest()


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
        if name not in found or found[name] == value:
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


def _add_stored(digest, params: epath.Path) -> None:
    """Adds the arrays of a checkpoint in a store, as `_add_samples` adds those on a disk."""
    system, where = fsspec.url_to_fs(str(params))
    found = system.find(where, detail=True)
    for path in sorted(map(pathlib.PurePosixPath, found)):
        size = found[str(path)]["size"]
        digest.update(f"{path.relative_to(where)} {size}\n".encode())
        for start in (0, size // 2, max(0, size - _SAMPLE)):
            if end := min(size, start + _SAMPLE):
                digest.update(system.cat_file(str(path), start=start, end=end))


def _add_samples(digest, file: BinaryIO, name: str, parts: list[tuple[int, int]]) -> None:
    """Adds a file's name and size, and the beginning, middle and end of each of its parts."""
    digest.update(f"{name} {file.seek(0, os.SEEK_END)}\n".encode())
    for begin, end in parts:
        for start in (begin, (begin + end) // 2, max(begin, end - _SAMPLE)):
            file.seek(start)
            digest.update(file.read(min(_SAMPLE, end - start)))
