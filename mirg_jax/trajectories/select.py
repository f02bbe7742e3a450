"""Questions for SFT and others for RL: a seeded choice, balanced over tasks, with its manifest.

Written into a folder: `questions.jsonl` (SFT, to be given trajectories), `rl.jsonl` (answers
alone), `rejected.jsonl` (what was left out, and why), and `manifest.json`, which says from what
and how.
"""

import collections
import dataclasses
import hashlib
import json
import pathlib
import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mirg_jax.data.examples import Example, Rejected, read_examples, write_trajectories
from mirg_jax.data.images import resolve_image
from mirg_jax.errors import ConfigError, DataError
from mirg_jax.mig_bench.benchmark import load_benchmark
from mirg_jax.trajectories import ingest


@dataclasses.dataclass(frozen=True)
class Choice:
    """How many questions to choose, and how.

    Attributes:
      sft, rl: how many; sft=0 takes all of the tasks, in the files' order, and leaves none for RL.
      weights: the share of each task, of any sum. Where a task hasn't enough, the others give more.
      seed: of the draw.
      exclude: a benchmark whose images may not be used, "" for none.
      exclude_root: its image root; with it, copies of its images under other names are found too.
    """

    sft: int
    rl: int
    weights: Mapping[str, float]
    seed: int
    exclude: str = ""
    exclude_root: str = ""

    def __post_init__(self):
        if min(self.sft, self.rl, *self.weights.values()) < 0 or not sum(self.weights.values()):
            raise ConfigError("select: counts and weights may not be negative, nor all weights 0")


def prepare(
    source: ingest.Source,
    image_root: str | pathlib.Path,
    folder: pathlib.Path,
    choice: Choice,
) -> list[Example]:
    """The questions for SFT, chosen and written into `folder`, or as they were the last time.

    Raises:
      DataError: for a file that can't be read.
      ConfigError: the folder holds a choice from other files or made otherwise.
    """
    # By lists and plain values, as JSON has them.
    how = json.loads(json.dumps(dataclasses.asdict(choice)))
    manifest = folder / "manifest.json"
    if manifest.exists():
        found = json.loads(manifest.read_text(encoding="utf-8"))
        if found["how"] != how or not _same_files(found["files"], source):
            raise ConfigError(
                f"{folder}: holds questions chosen otherwise or from other files than the input's; "
                "give another --output_dir or delete it"
            )
        return read_examples(folder / "questions.jsonl")[0]

    ingested = ingest.ingest(source)
    chosen, left_out = choose(ingested.questions, image_root, choice)
    left_out = ingested.left_out + left_out
    folder.mkdir(parents=True, exist_ok=True)
    for name, examples in (("questions", chosen["sft"]), ("rl", chosen["rl"])):
        write_trajectories(folder / f"{name}.jsonl", examples)
    with open(folder / "rejected.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(dataclasses.asdict(row)) + "\n" for row in left_out)
    counts = {name: len(examples) for name, examples in chosen.items()}
    seen = sum(file.questions for file in ingested.files)
    content = {
        "how": how,
        "files": [dataclasses.asdict(file) for file in ingested.files],
        "questions": seen,
        **counts,
        "left_out": len(left_out),
        "not_drawn": seen - len(left_out) - sum(counts.values()),
        "by_task": {
            name: dict(sorted(collections.Counter(e.task for e in examples).items()))
            for name, examples in chosen.items()
        },
        "reasons": dict(
            collections.Counter(ingest.kind(row.reason) for row in left_out).most_common()
        ),
        "chosen": {
            name: [[example.source, example.id] for example in examples]
            for name, examples in chosen.items()
        },
    }
    # Last, and at once: a choice without a manifest is made again.
    part = manifest.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.rename(manifest)
    return chosen["sft"]


def _same_files(found: list[dict], source: ingest.Source) -> bool:
    files = ingest.find_files(source).values()
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    return hashes == [file["sha256"] for file in found]


def choose(
    questions: Sequence[Example], image_root: str | pathlib.Path, choice: Choice
) -> tuple[dict[str, list[Example]], list[Rejected]]:
    """The questions of "sft" and "rl", and what can't be used.

    No two of the questions drawn show the same images, so a row's turns don't meet, least of all
    one in SFT and one in RL. They come with the tasks in turn: any head of them is balanced too.
    """
    left_out = []
    usable = []
    barred = _Barred(choice)
    for question in questions:
        if choice.weights.get(question.task, 0) <= 0:
            reason = f"task {question.task!r} is not one of those chosen"
            left_out.append(Rejected(question.source, question.id, reason))
        elif name := barred.by_name(question):
            reason = f"image {name!r} is one of the benchmark's"
            left_out.append(Rejected(question.source, question.id, reason))
        else:
            usable.append(question)

    def is_there(question: Example) -> bool:
        try:
            for path in question.images:
                file = resolve_image(image_root, path)
                if not file.is_file():
                    raise DataError(f"image {path!r}: no such file below the image root")
                if barred.by_content(file):
                    raise DataError(f"image {path!r} is a copy of one of the benchmark's")
        except DataError as error:
            left_out.append(Rejected(question.source, question.id, str(error)))
            return False
        return True

    if not choice.sft:
        return {"sft": list(filter(is_there, usable)), "rl": []}, left_out

    draws = {task: _draws(usable, task, choice.seed) for task in choice.weights}
    drawn: dict[str, list[Example]] = {task: [] for task in choice.weights}
    most = {task: len(usable) for task in choice.weights}
    total = choice.sft + choice.rl
    while True:
        shares = apportion(total, choice.weights, most)
        for task, share in shares.items():
            while len(drawn[task]) < share:
                question = next(draws[task], None)
                if question is None:
                    most[task] = len(drawn[task])
                    break
                if is_there(question):
                    drawn[task].append(question)
        if all(len(drawn[task]) >= share for task, share in shares.items()):
            break
    have = {task: len(found) for task, found in drawn.items()}
    for_sft = apportion(round(sum(have.values()) * choice.sft / total), have, have)
    return {
        "sft": _in_turn([found[: for_sft[task]] for task, found in drawn.items()]),
        "rl": _in_turn([found[for_sft[task] :] for task, found in drawn.items()]),
    }, left_out


def apportion(total: int, weights: Mapping[str, float], most: Mapping[str, int]) -> dict[str, int]:
    """Divides a total by weights into whole numbers, none over its `most`, by largest remainders.

    What one can't take goes to the others; the sum is less only where all have their most.
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


def _draws(questions: Sequence[Example], task: str, seed: int) -> Iterator[Example]:
    """A task's questions in random order, one of each set of images."""
    groups: dict[tuple[str, ...], list[Example]] = {}
    for question in questions:
        if question.task == task:
            groups.setdefault(tuple(sorted(question.images)), []).append(question)
    rng = np.random.default_rng([seed, zlib.crc32(task.encode())])
    alike = list(groups.values())
    for index in rng.permutation(len(alike)):
        yield alike[index][rng.integers(len(alike[index]))]


def _in_turn(columns: Sequence[Sequence[Example]]) -> list[Example]:
    """The columns' items spread evenly over the result."""
    placed = [
        ((place + 0.5) / len(column), number, item)
        for number, column in enumerate(columns)
        for place, item in enumerate(column)
    ]
    return [item for _, _, item in sorted(placed, key=lambda entry: entry[:2])]


class _Barred:
    """The images of a benchmark."""

    def __init__(self, choice: Choice):
        rows = load_benchmark(choice.exclude) if choice.exclude else []
        paths = sorted({path for row in rows for path in row.images})
        self._names = {_name(path) for path in paths}
        self._sizes: dict[int, list[pathlib.Path]] = {}
        self._hashes: dict[pathlib.Path, bytes] = {}
        if choice.exclude_root:
            for path in paths:
                file = resolve_image(choice.exclude_root, path)
                if not file.is_file():
                    raise DataError(
                        f"{choice.exclude}: image {path!r} is not below {choice.exclude_root}; "
                        "mend select.exclude_root, or leave it empty to compare names alone"
                    )
                self._sizes.setdefault(file.stat().st_size, []).append(file)

    def by_name(self, question: Example) -> str | None:
        return next((path for path in question.images if _name(path) in self._names), None)

    def by_content(self, file: pathlib.Path) -> bool:
        alike = self._sizes.get(file.stat().st_size, ())
        return any(self._hash(file) == self._hash(other) for other in alike)

    def _hash(self, file: pathlib.Path) -> bytes:
        if file not in self._hashes:
            self._hashes[file] = hashlib.sha256(file.read_bytes()).digest()
        return self._hashes[file]


def _name(path: str) -> str:
    """What tells an image from others: its name, with the folder's where that is but a number."""
    found = pathlib.PurePosixPath(path)
    short = found.stem.isdigit() and len(found.stem) < 10
    return f"{found.parent.name}/{found.stem}" if short else found.stem
