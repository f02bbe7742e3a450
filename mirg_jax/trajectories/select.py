"""Selects questions for SFT and others for RL, at random and balanced over the tasks.

Writes a folder: `questions.jsonl` (SFT, to be annotated), `rl.jsonl` (with their answers only),
`rejected.jsonl` (what was left out, with reasons), and `manifest.json` (the settings, the input
files and all that was selected).
"""

import collections
import dataclasses
import hashlib
import json
import pathlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mirg_jax.data.examples import Example, Rejected, read_examples, write_trajectories
from mirg_jax.data.images import Root, resolve_image
from mirg_jax.errors import ConfigError, DataError, reason_kind
from mirg_jax.files import outputs
from mirg_jax.files.locks import Lock
from mirg_jax.files.streams import say
from mirg_jax.mig_bench.benchmark import load_benchmark
from mirg_jax.runs import facts, run_folder
from mirg_jax.trajectories import ingest
from mirg_jax.trajectories.settings import SelectionSettings

_PATIENCE = 3600.0  # seconds to wait for a process that chooses the questions of the same folder
_MISSING = "image {!r}: no such file below the image root"
_AGAIN = "delete {} to choose the questions again, no answer is lost"


class Selection(NamedTuple):
    """The questions for SFT and for RL, and what can't be used. Others were not drawn."""

    sft: list[Example]
    rl: list[Example]
    left_out: list[Rejected]


def prepare_questions(
    source: ingest.Source,
    image_root: Root,
    folder: pathlib.Path,
    settings: SelectionSettings,
) -> list[Example]:
    """Returns the questions for SFT: selects and writes them, or reads an earlier selection.

    Raises:
      DataError: a file can't be read, or no question can be used.
      CheckpointError: the record of the selection in the folder is damaged.
      ConfigError: the folder holds a selection from other files or with other settings.
    """
    how = json.loads(json.dumps(dataclasses.asdict(settings)))  # with JSON's types
    excluded = ""
    if settings.exclude and pathlib.Path(settings.exclude).exists():
        excluded = facts.hash_rows(settings.exclude)
    found = _earlier_questions(source, folder, how, excluded)
    if found is None:
        # Of shards that begin at the same time, one chooses the questions, and the others wait.
        with Lock(folder / "selection.lock", patience=_PATIENCE):
            found = _earlier_questions(source, folder, how, excluded)
            if found is None:
                ingested = ingest.ingest(source)
                selection = select_questions(ingested.questions, image_root, settings)
                selection = selection._replace(left_out=ingested.left_out + selection.left_out)
                content = _manifest(how, ingested.files, selection)
                _write(folder, selection, {"exclude_sha256": excluded} | content)
                found = selection.sft
    return found


def _earlier_questions(
    source: ingest.Source, folder: pathlib.Path, how: Mapping[str, Any], excluded: str
) -> list[Example] | None:
    """Reads the questions of an earlier selection; None if there is none.

    Args:
      how: the settings.
      excluded: hash of the benchmark whose images are left out; "" if there is none.

    Raises:
      UserError: as `prepare_questions`.
    """
    found = _read_manifest(folder / "manifest.json")
    if not found:
        return None
    changes = facts.describe_changes(found, {"how": how})
    if excluded and found.get("exclude_sha256", excluded) != excluded:
        changes.append(f"the content of {how['exclude']} has changed")
    if not _are_same_files(found["files"], source):
        changes.append("from other files than the input's")
    if changes:
        raise ConfigError(
            f"{folder}: holds questions chosen otherwise ({'; '.join(changes)}); give another "
            "--output_dir or delete it"
        )
    if missing := found.get("reasons", {}).get(reason_kind(_MISSING.format("a.jpg")), 0):
        say(
            f"{folder}: was chosen when the images of {missing} questions were not there; if they "
            f"are now, {_AGAIN.format(folder)}"
        )
    return _read_questions(folder / "questions.jsonl", found["sft"])


def _write(folder: pathlib.Path, selection: Selection, manifest: Mapping[str, Any]) -> None:
    """Writes a selection.

    Raises:
      DataError: no question can be used; only the list of those left out is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with outputs.whole(folder / "questions.jsonl") as part:
        write_trajectories(part, selection.sft)
    with outputs.whole(folder / "rl.jsonl") as part:
        write_trajectories(part, selection.rl)
    rejected = [json.dumps(dataclasses.asdict(row)) + "\n" for row in selection.left_out]
    outputs.replace_text(folder / "rejected.jsonl", "".join(rejected))
    if not selection.sft:
        first = f"; the first: {selection.left_out[0].reason}" if selection.left_out else ""
        raise DataError(
            f"no question can be used, {len(selection.left_out)} were left out{first}; all reasons "
            f"are in {folder / 'rejected.jsonl'}"
        )
    # Written last: without a manifest, the selection is made again.
    outputs.replace_text(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")


def _manifest(
    how: Mapping[str, Any], files: Sequence[ingest.IngestedFile], selection: Selection
) -> dict[str, Any]:
    sets = {"sft": selection.sft, "rl": selection.rl}
    counts = {name: len(examples) for name, examples in sets.items()}
    questions = sum(file.questions for file in files)
    left_out = selection.left_out
    return {
        "how": how,
        "files": [dataclasses.asdict(file) for file in files],
        "questions": questions,
        **counts,
        "left_out": len(left_out),
        "not_drawn": questions - len(left_out) - sum(counts.values()),
        "by_task": {
            name: dict(sorted(collections.Counter(e.task for e in examples).items()))
            for name, examples in sets.items()
        },
        "reasons": dict(
            collections.Counter(reason_kind(row.reason) for row in left_out).most_common()
        ),
        "chosen": {
            name: [[example.source, example.id] for example in examples]
            for name, examples in sets.items()
        },
    }


def _read_manifest(path: pathlib.Path) -> dict[str, Any] | None:
    """Reads an earlier selection's manifest; None if there is none, or nothing was selected.

    Raises:
      CheckpointError: if it is damaged.
    """

    def parse(raw: Any) -> dict[str, Any]:
        found = run_folder.as_object(raw)
        run_folder.as_object(found["how"])
        if type(found["sft"]) is not int:
            raise TypeError("sft is no number")
        if not all(isinstance(file["sha256"], str) for file in found["files"]):
            raise TypeError("sha256 is no text")
        return found

    found = run_folder.read_record(path, parse, "a selection", _AGAIN.format(path.parent))
    return found if found and found["sft"] else None


def _read_questions(path: pathlib.Path, count: int) -> list[Example]:
    """Reads the questions of an earlier selection.

    Raises:
      DataError: if the file is damaged.
    """
    questions, rejected = read_examples(path)
    if rejected or len(questions) != count:
        first = f", {rejected[0].source}: {rejected[0].reason}" if rejected else ""
        raise DataError(
            f"{path}: has {len(questions)} questions that can be read, and {count} were chosen"
            f"{first}; {_AGAIN.format(path.parent)}"
        )
    return questions


def _are_same_files(found: list[dict], source: ingest.Source) -> bool:
    files = ingest.find_files(source).values()
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    return hashes == [file["sha256"] for file in found]


# Selecting ----------------------------------------------------------------------------------------


def select_questions(
    questions: Sequence[Example], image_root: Root, settings: SelectionSettings
) -> Selection:
    """Selects the questions for SFT and RL.

    No two of the questions drawn show the same set of images, so two turns of a row are never both
    used. The tasks are spread evenly over the result, so its beginning is balanced too.
    """
    usable = _Filter(image_root, settings)
    candidates = [question for question in questions if usable.by_name(question)]
    if not settings.sft:
        return Selection(list(filter(usable.by_images, candidates)), [], usable.left_out)
    drawn = _draw(candidates, usable, settings)
    counts = {task: len(found) for task, found in drawn.items()}
    for_sft = apportion(
        round(sum(counts.values()) * settings.sft / (settings.sft + settings.rl)), counts, counts
    )
    return Selection(
        _spread([found[: for_sft[task]] for task, found in drawn.items()]),
        _spread([found[for_sft[task] :] for task, found in drawn.items()]),
        usable.left_out,
    )


def _draw(
    candidates: Sequence[Example], usable: "_Filter", settings: SelectionSettings
) -> dict[str, list[Example]]:
    """Draws questions of each task, for SFT and RL together."""
    orders = {task: _random_order(candidates, task, settings.seed) for task in settings.weights}
    drawn: dict[str, list[Example]] = {task: [] for task in settings.weights}
    most = {task: len(candidates) for task in settings.weights}
    while True:
        shares = apportion(settings.sft + settings.rl, settings.weights, most)
        for task, share in shares.items():
            while len(drawn[task]) < share:
                question = next(orders[task], None)
                if question is None:
                    most[task] = len(drawn[task])
                    break
                if usable.by_images(question):
                    drawn[task].append(question)
        if all(len(drawn[task]) >= share for task, share in shares.items()):
            return drawn


def apportion(total: int, weights: Mapping[str, float], most: Mapping[str, int]) -> dict[str, int]:
    """Divides a total by weights into whole numbers, by the method of largest remainders.

    No share exceeds its `most`; the rest goes to the others. So the sum is less than the total only
    where all shares are at their `most`.
    """
    shares = {name: 0 for name, weight in weights.items() if weight <= 0}
    while open_ := {name: weight for name, weight in weights.items() if name not in shares}:
        left = total - sum(shares.values())
        ideal = {name: left * weight / sum(open_.values()) for name, weight in open_.items()}
        full = {name: most[name] for name in open_ if ideal[name] >= most[name]}
        if not full:
            whole = {name: int(share) for name, share in ideal.items()}
            order = sorted(open_, key=lambda name: whole[name] - ideal[name])
            for name in order[: left - sum(whole.values())]:
                whole[name] += 1
            full = whole
        shares |= full
    return {name: shares[name] for name in weights}


def _random_order(questions: Sequence[Example], task: str, seed: int) -> Iterator[Example]:
    """Yields a task's questions in random order, one for each set of images."""
    groups: dict[tuple[str, ...], list[Example]] = {}
    for question in questions:
        if question.task == task:
            groups.setdefault(tuple(sorted(question.images)), []).append(question)
    rng = np.random.default_rng([seed, zlib.crc32(task.encode())])
    alike = list(groups.values())
    for index in rng.permutation(len(alike)):
        yield alike[index][rng.integers(len(alike[index]))]


def _spread(columns: Sequence[Sequence[Example]]) -> list[Example]:
    """Merges lists so that the items of each are spread evenly over the result."""
    placed = [
        ((place + 0.5) / len(column), number, item)
        for number, column in enumerate(columns)
        for place, item in enumerate(column)
    ]
    return [item for _, _, item in sorted(placed, key=lambda entry: entry[:2])]


# Filtering ----------------------------------------------------------------------------------------


class _Filter:
    """Tells which questions can be used, and lists the others.

    Attributes:
      left_out: the questions that can't be used, with reasons.
    """

    def __init__(self, image_root: Root, settings: SelectionSettings):
        """
        Raises:
          DataError: the benchmark to exclude, or an image of it, can't be read.
        """
        self._image_root, self._weights = image_root, settings.weights
        self._excluded = _ExcludedImages(settings.exclude, settings.exclude_root)
        self.left_out: list[Rejected] = []

    def by_name(self, question: Example) -> bool:
        """Checks a question's task and the names of its images."""
        if self._weights.get(question.task, 0) <= 0:
            return self._leave_out(question, f"task {question.task!r} is not one of those chosen")
        for path in question.images:
            if self._excluded.has_name(path):
                return self._leave_out(question, f"image {path!r} is one of the benchmark's")
        return True

    def by_images(self, question: Example) -> bool:
        """Checks that a question's images exist and are no copies of excluded ones."""
        try:
            for path in question.images:
                file = resolve_image(self._image_root, path)
                if not file.is_file():
                    raise DataError(_MISSING.format(path))
                if self._excluded.has_content(file):
                    raise DataError(f"image {path!r} is a copy of one of the benchmark's")
        except DataError as error:
            return self._leave_out(question, str(error))
        return True

    def _leave_out(self, question: Example, reason: str) -> bool:
        self.left_out.append(Rejected(question.source, question.id, reason))
        return False


class _ExcludedImages:
    """The images of a benchmark."""

    def __init__(self, benchmark: str, image_root: str):
        """
        Args:
          benchmark: its file; "" for none.
          image_root: "" for no comparison by content.
        """
        rows = load_benchmark(benchmark) if benchmark else []
        paths = sorted({path for row in rows for path in row.images})
        self._names = {_distinctive_name(path) for path in paths}
        self._by_size: dict[int, list[pathlib.Path]] = {}
        self._hashes: dict[pathlib.Path, bytes] = {}
        if image_root:
            for path in paths:
                file = resolve_image(image_root, path)
                if not file.is_file():
                    raise DataError(
                        f"{benchmark}: image {path!r} is not below {image_root}; "
                        "correct select.exclude_root, or leave it empty to compare names only"
                    )
                self._by_size.setdefault(file.stat().st_size, []).append(file)

    def has_name(self, path: str) -> bool:
        return _distinctive_name(path) in self._names

    def has_content(self, file: pathlib.Path) -> bool:
        alike = self._by_size.get(file.stat().st_size, ())
        return any(self._hash(file) == self._hash(other) for other in alike)

    def _hash(self, file: pathlib.Path) -> bytes:
        if file not in self._hashes:
            self._hashes[file] = hashlib.sha256(file.read_bytes()).digest()
        return self._hashes[file]


def _distinctive_name(path: str) -> str:
    """Returns a file's name, with its folder's name if the name is only a short number."""
    found = pathlib.PurePosixPath(path)
    short = found.stem.isdigit() and len(found.stem) < 10
    return f"{found.parent.name}/{found.stem}" if short else found.stem
