"""Facts that results depend on: hashes of models, and descriptions of what changed."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import fsspec

from mirg_jax.data.row_files import hash_rows as hash_rows
from mirg_jax.errors import CheckpointError
from mirg_jax.files import places
from mirg_jax.files.hashes import SAMPLE, add_samples, agrees, hash_file, hash_files
from mirg_jax.models.config import ModelConfig
from mirg_jax.models.json_fields import token_ids
from mirg_jax.runs import adapters, loading, run_folder
from mirg_jax.runs.settings import Settings

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
_OWN_NAMES = ("grpo.rewards.", "select.weights.")  # settings with names of the user's in them


def hash_model(source: str | places.Place) -> str | None:
    """Returns a hash that tells a model's weights, config and tokenizer from others.

    It has two halves, `SAMPLES.CONTENT`. The first is made from samples of every tensor, as earlier
    versions recorded it (`agrees`). The second is of all bytes of the weights' files: a header,
    sizes and dates don't tell a tensor that was changed in a few places. That is some 0.5 GB a
    second and core, less than it takes to load and use the model, and the files are then in the
    system's cache. A cache of hashes by date and size would miss files that are copied with their
    dates. Of a LoRA run it includes the base model.

    `origin.fingerprint` can't take its place, nor this one that one's. This one is known before
    anything is loaded, and includes config and tokenizer; the same weights in other files, or in
    another dtype, are another model here. That one is of the numbers themselves, in the dtype of
    training, so a run goes on with a copy of its start in any format.

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


def of_inputs(settings: Settings) -> dict[str, Any]:
    """Returns the settings that say what a model is given for a question, and computes it in."""
    data, prompt = settings.data, dataclasses.asdict(settings.prompt)
    instruction = prompt.pop("direct_instruction")
    if settings.evaluation.direct:
        prompt["instruction"] = instruction
    return {
        **{f"prompt.{name}": text for name, text in prompt.items()},
        "direct": settings.evaluation.direct,
        "min_pixels": data.min_pixels,
        "max_pixels": data.max_pixels,
        "apply_exif": data.apply_exif,
        "compute_dtype": str(settings.model.precision.compute),
    }


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


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested settings by dotted name, so that one that a record lacks is not compared."""
    fields: dict[str, Any] = {}
    for name, value in settings.items():
        full = prefix + name
        fields |= flat(value, f"{full}.") if isinstance(value, Mapping) else {full: value}
    return fields


def describe_settings(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Describes how `flat` settings differ, as `describe_changes` does.

    Where names are the user's, a setting that one side lacks was not set there, and is null; unless
    the record has none of them, as that of an earlier version may.
    """
    recorded = tuple(each for each in _OWN_NAMES if any(name.startswith(each) for name in found))
    own = dict.fromkeys(name for name in (*found, *wanted) if name.startswith(recorded))
    return describe_changes(own | found, own | wanted)


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
        add_samples(digest, file, path.name, [(0, 8 + length), *sorted(parts)])


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
            return add_samples(digest, file, name, [(0, path.stat().st_size)])
    system, where = fsspec.url_to_fs(str(path))
    size = system.size(where)
    digest.update(f"{name} {size}\n".encode())
    for start in (0, size // 2, max(0, size - SAMPLE)):
        if end := min(size, start + SAMPLE):
            digest.update(system.cat_file(where, start=start, end=end))
