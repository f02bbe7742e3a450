"""Composes data sets: labels → index → examples in pieces → files, manifest and page.

A run that was interrupted goes on at the first piece that isn't there. What a piece holds depends
on the settings, the labels and the piece's number alone, so the files are the same in the end.
"""

import contextlib
import dataclasses
import json
import pathlib
import re
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from mirg_jax.compose import counts, page, writing
from mirg_jax.compose.drafts import Draft
from mirg_jax.compose.index import EVAL, TRAIN, build_index, check_photos, facts_of
from mirg_jax.compose.library import Library, NotPossible
from mirg_jax.compose.sources import Source, hash_labels
from mirg_jax.compose.tasks import COMPOSERS
from mirg_jax.data.examples import write_mig_bench
from mirg_jax.data.images import ImageRoot
from mirg_jax.data.left_out import LeftOut
from mirg_jax.errors import ConfigError, DataError
from mirg_jax.files import outputs, places
from mirg_jax.files.locks import Lock
from mirg_jax.files.streams import progress_bar

_PIECE = 100  # examples
_DRAWS = 60  # draws for an example, before it is given up
_SPLITS = {"sft": TRAIN, "rl": TRAIN, "eval": EVAL}
_FILES = {"sft": "sft.jsonl", "rl": "rl.jsonl", "eval": "eval.json"}
_PAGE, _SETTINGS = "report.html", "settings.json"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is composed.

    Attributes:
      sources: where labels come from.
      image_root: folder that images are relative to.
      counts: examples by file: "sft", "rl", "eval".
      tasks: names of the tasks, which take turns.
      eval_share: share of the photos that is for evaluation.
      seed: random seed.
      max_pixels: upper limit on the pixels of images that are made.
    """

    sources: tuple[Source, ...]
    image_root: ImageRoot
    counts: dict[str, int]
    tasks: tuple[str, ...] = tuple(COMPOSERS)
    eval_share: float = 0.1
    seed: int = 0
    max_pixels: int = 401_408

    def __post_init__(self):
        """Raises ConfigError for settings that name nothing, or contradict one another."""
        if not self.sources:
            raise ConfigError("--source: give at least one")
        if unknown := [name for name in self.tasks if name not in COMPOSERS]:
            raise ConfigError(
                f"--tasks: {unknown[0]!r} is none of {', '.join(COMPOSERS)}; correct the name"
            )
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise ConfigError("--tasks: name each task once, and at least one")
        if not sum(self.counts.values()):
            raise ConfigError("--sft, --rl, --evaluation: all are 0; ask for examples")
        if self.counts["eval"] and not self.eval_share:
            raise ConfigError("--eval_share: is 0, and --evaluation isn't; give photos for it")

    def to_json(self) -> dict[str, Any]:
        """Returns what the files follow from, besides the labels."""
        return {
            "sources": [
                {
                    "kind": each.kind,
                    "labels": str(each.labels.absolute()),
                    "folder": each.folder,
                    "complete": each.complete,
                }
                for each in self.sources
            ],
            "image_root": str(pathlib.Path(self.image_root.path).absolute()),
            "follow_links": self.image_root.follow_links,
            "counts": self.counts,
            "tasks": list(self.tasks),
            "eval_share": self.eval_share,
            "seed": self.seed,
            "max_pixels": self.max_pixels,
        }


class _Folder(NamedTuple):
    """Places in the output folder."""

    path: pathlib.Path

    @property
    def work(self) -> pathlib.Path:
        """What is removed in the end."""
        return self.path / "work"

    @property
    def index(self) -> pathlib.Path:
        return self.work / "labels.sqlite"

    @property
    def manifest(self) -> pathlib.Path:
        return self.path / "manifest.json"

    def piece(self, name: str, number: int) -> pathlib.Path:
        return self.work / f"{name}_{number:05d}.jsonl"

    def has_some(self) -> bool:
        """Returns whether an example was made."""
        made = (self.path / name for name in (writing.MADE, writing.PHOTOS))
        return self.manifest.exists() or any(
            path.is_file() for at in made for path in at.rglob("*")
        )


def compose(settings: Settings, output_dir: pathlib.Path) -> dict[str, Any]:
    """Composes what isn't there yet, and writes all files.

    Args:
      settings: what is composed.
      output_dir: the folder for sft.jsonl, rl.jsonl, eval.json, their images, manifest.json and
        report.html.

    Returns:
      The content of manifest.json.

    Raises:
      UserError: for labels that can't be used, a folder with other data in it, or no example.
    """
    folder = _Folder(output_dir)
    with Lock(output_dir / "compose.lock"), _explained(output_dir):
        _check_settings(settings, folder)
        if folder.manifest.exists():
            shutil.rmtree(folder.work, ignore_errors=True)  # of a run that was killed at its end
            return json.loads(folder.manifest.read_text("utf-8"))
        for each in (folder.work, output_dir / writing.MADE, output_dir / writing.PHOTOS):
            each.mkdir(parents=True, exist_ok=True)
        _remove_parts(folder)
        _make_index(settings, folder)
        _check_splits(settings, folder)
        for name, count in settings.counts.items():
            if count:
                _compose_file(settings, folder, name)
        manifest = _assemble(settings, folder)
        shutil.rmtree(folder.work)
    return manifest


def _remove_parts(folder: _Folder) -> None:
    """Removes what a run that was killed has begun to write."""
    written = *_FILES.values(), folder.manifest.name, _PAGE, _SETTINGS
    parts = [path for name in written for path in folder.path.glob(f"{name}.*.part")]
    for each in (folder.work, folder.path / writing.MADE, folder.path / writing.PHOTOS):
        parts += each.rglob("*.part")
    for part in parts:
        part.unlink()


def _check_settings(settings: Settings, folder: _Folder) -> None:
    """Checks that the folder has no data of other settings or labels, nor something else.

    A folder in which nothing was made so far takes any.

    Raises:
      ConfigError: if it has.
    """
    for source in settings.sources:
        labels = source.labels if source.labels.is_dir() else source.labels.parent
        in_folder = source.labels.is_dir() or source.kind == "yolo"
        if in_folder and folder.path.resolve().is_relative_to(labels.resolve()):
            raise ConfigError(
                f"--output_dir={folder.path}: lies within the labels of "
                f"--source={source.kind}={source.labels}; give a folder outside of them"
            )
    record = folder.path / _SETTINGS
    wanted = settings.to_json() | {"labels_sha256": [hash_labels(s) for s in settings.sources]}
    if not record.exists():
        ours = re.compile(rf"compose\.lock|{_SETTINGS}\..*\.part")  # of a run that was killed
        others = [each.name for each in folder.path.iterdir() if not ours.fullmatch(each.name)]
        if others:
            raise ConfigError(
                f"--output_dir={folder.path}: has {min(others)!r}, which was not composed; give an "
                "empty folder"
            )
    else:
        found = places.read_object(record) or {}
        # Earlier versions recorded no hash of the labels.
        known = {name: wanted[name] for name in wanted if name in found or name != "labels_sha256"}
        if found == known:
            return
        if folder.has_some():
            what = "other settings"
            if found | {"labels_sha256": None} == known | {"labels_sha256": None}:
                what = "labels of other content"
            raise ConfigError(
                f"--output_dir={folder.path}: was composed with {what} ({record.name}); give "
                "those to go on, or another folder"
            )
        shutil.rmtree(folder.work, ignore_errors=True)
    outputs.replace_text(record, json.dumps(wanted, indent=1) + "\n")


def _make_index(settings: Settings, folder: _Folder) -> None:
    if folder.index.exists():
        check_photos(folder.index, settings.image_root)
        return
    left_out = LeftOut()
    with _whole_index(folder, left_out) as path:
        build_index(
            path,
            settings.sources,
            settings.image_root,
            seed=settings.seed,
            eval_share=settings.eval_share,
            left_out=left_out,
        )


@contextlib.contextmanager
def _whole_index(folder: _Folder, left_out: LeftOut) -> Iterator[pathlib.Path]:
    """Yields a path for the index, which gets its name when what was left out is written too."""
    with outputs.whole(folder.index) as part:
        yield part
        outputs.replace_text(folder.work / "left_out.json", json.dumps(left_out.to_json()))


def _check_splits(settings: Settings, folder: _Folder) -> None:
    """Checks that there are photos for each file, before any is composed.

    Raises:
      DataError: if there are none for one.
    """
    photos = facts_of(folder.index)["photos"]
    for name, count in settings.counts.items():
        if count and not photos["eval" if _SPLITS[name] == EVAL else "train"]:
            raise DataError(
                f"no photo is for {_FILES[name]}, as all {sum(photos.values())} are for the other "
                "split (frames of a sequence stay together); give more photos or sequences, "
                "another --eval_share or another --seed"
            )


def _compose_file(settings: Settings, folder: _Folder, name: str) -> None:
    """Composes the pieces of a file that aren't there yet."""
    count = settings.counts[name]
    library = Library(folder.index, settings.image_root, _SPLITS[name], settings.max_pixels)
    with contextlib.closing(library):
        with progress_bar(total=count, desc=name, unit="example", mininterval=1) as bar:
            for number, start in enumerate(range(0, count, _PIECE)):
                path = folder.piece(name, number)
                stop = min(start + _PIECE, count)
                if not path.exists():
                    _compose_piece(settings, folder, name, range(start, stop), library, path)
                bar.update(stop - start)


def _compose_piece(
    settings: Settings,
    folder: _Folder,
    name: str,
    numbers: Sequence[int],
    library: Library,
    path: pathlib.Path,
) -> None:
    rows, left_out = [], {task: LeftOut() for task in settings.tasks}
    for number in numbers:
        task = settings.tasks[number % len(settings.tasks)]
        seeds = [settings.seed, list(_FILES).index(name), list(COMPOSERS).index(task), number]
        draft = draw_draft(np.random.default_rng(seeds), library, task, left_out[task])
        if draft is None:
            continue
        example_id = f"{task}_{name}_{number:06d}"
        images = writing.write_images(draft, example_id, library, settings.image_root, folder.path)
        direct = True if name == "sft" else None  # its answers have no thoughts
        example = writing.to_example(draft, example_id, task, images, direct)
        rows.append(writing.to_row(example, draft.photos))
    counted = {task: each.to_json() for task, each in left_out.items()}
    writing.write_piece(path, rows, counted)


def draw_draft(
    rng: np.random.Generator, library: Library, task: str, left_out: LeftOut
) -> Draft | None:
    """Draws until an example of a task comes of it.

    Args:
      rng: random number generator.
      library: the photos.
      task: name of the task.
      left_out: counts draws of which nothing came.

    Returns:
      The draft; None if nothing came of any draw.
    """
    for _ in range(_DRAWS):
        try:
            draft = COMPOSERS[task](rng, library)
            writing.check_readable(draft, library)
            return draft
        except NotPossible as reason:
            left_out.add(str(reason))
        except DataError as error:
            left_out.add("an image can't be read", str(error))
    return None


# The files ----------------------------------------------------------------------------------------


def _assemble(settings: Settings, folder: _Folder) -> dict[str, Any]:
    """Writes the files, the page and, at last, the manifest.

    Raises:
      DataError: if there is no example.
    """
    seen: set[bytes] = set()
    shown = page.Sample()
    files = {
        name: _assemble_file(settings, folder, name, seen, shown)
        for name, count in settings.counts.items()
        if count
    }
    manifest = {
        "settings": settings.to_json(),
        **facts_of(folder.index),
        "files": {_FILES[name]: tasks for name, tasks in files.items()},
        "labels_left_out": json.loads((folder.work / "left_out.json").read_text("utf-8")),
    }
    rows = [row for _, _, row in counts.by_task(manifest)]
    if not sum(row["examples"] for row in rows):
        reason = next(each["first"] for row in rows for each in row["draws_left_out"])
        unused = counts.told_left_out(manifest["labels_left_out"], "labels can't be used")
        told = f"{reason}; {unused}" if unused else reason
        raise DataError(f"no example can be composed: {told}; give other labels or tasks")
    page.write_page(folder.path / _PAGE, manifest, shown.examples, folder.path)
    outputs.replace_text(folder.manifest, json.dumps(manifest, indent=1) + "\n")
    return manifest


def _assemble_file(
    settings: Settings, folder: _Folder, name: str, seen: set[bytes], shown: page.Sample
) -> dict[str, Any]:
    """Joins the pieces of a file, without questions that were there before; counts by task."""
    count, tasks = settings.counts[name], settings.tasks
    asked = {task: len(range(n, count, len(tasks))) for n, task in enumerate(tasks)}
    made, repeated = dict.fromkeys(tasks, 0), dict.fromkeys(tasks, 0)
    left_out = {task: LeftOut() for task in tasks}
    target = folder.path / _FILES[name]
    lines = target if name != "eval" else folder.work / "eval.jsonl"
    with outputs.whole(lines) as part, open(part, "w", encoding="utf-8") as file:
        for number in range(-(-count // _PIECE)):
            rows, counted = writing.read_piece(folder.piece(name, number))
            for task, each in counted.items():
                left_out[task].merge(each)
            for row in rows:
                if (key := writing.key_of(row)) in seen:
                    repeated[row["task"]] += 1
                    for path in row["images"]:
                        if path.startswith(f"{writing.MADE}/"):
                            (folder.path / path).unlink(missing_ok=True)
                    continue
                seen.add(key)
                made[row["task"]] += 1
                shown.add(name, row)
                file.write(json.dumps(row) + "\n")
    if name == "eval":
        _write_eval(lines, target)
    return {
        task: {
            "asked": asked[task],
            "examples": made[task],
            "repeated": repeated[task],
            "draws_left_out": left_out[task].to_json(),
        }
        for task in tasks
    }


def _write_eval(lines: pathlib.Path, target: pathlib.Path) -> None:
    """Writes MIG-Bench's format, with the photos that a row was made from beside it."""
    with open(lines, encoding="utf-8") as file:
        rows = list(map(json.loads, file))
    with outputs.whole(target) as part:
        write_mig_bench(part, map(writing.of_row, rows))
        found = json.loads(part.read_text("utf-8"))
        for each, row in zip(found, rows, strict=True):
            each["photos"] = row["photos"]
        part.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


@contextlib.contextmanager
def _explained(folder: pathlib.Path) -> Iterator[None]:
    """Turns errors of the system in a `with` block into a `DataError` that names the folder."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        name = getattr(error, "filename", None)
        reason = f"{name}: {error.strerror}" if name else getattr(error, "strerror", None) or error
        raise DataError(
            f"{folder}: can't be written ({reason}); fix that and run again to go on"
        ) from None
