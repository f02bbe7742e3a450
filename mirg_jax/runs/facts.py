"""Facts that results depend on: hashes of models and files, and descriptions of what changed."""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import fsspec
from etils import epath

from mirg_jax.errors import CheckpointError, DataError
from mirg_jax.files import places
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
            _add_samples(digest, path, str(path.relative_to(params)), [(0, path.stat().st_size)])
    if record := adapters.read(saved.run):
        digest.update(f"{hash_model(record.base)} {record.param_dtype} {record.lora}".encode())
    return digest.hexdigest()


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
        except (ValueError, KeyError, TypeError, AttributeError):  # whoever loads it says so
            parts, length = [], 0
    _add_samples(digest, path, path.name, [(0, 8 + length), *sorted(parts)])


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


def _add_samples(digest, path: pathlib.Path, name: str, parts: list[tuple[int, int]]) -> None:
    """Adds a file's name and size, and the beginning, middle and end of each of its parts."""
    digest.update(f"{name} {path.stat().st_size}\n".encode())
    with open(path, "rb") as file:
        for begin, end in parts:
            for start in (begin, (begin + end) // 2, max(begin, end - _SAMPLE)):
                file.seek(start)
                digest.update(file.read(min(_SAMPLE, end - start)))
