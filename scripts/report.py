"""Writes a report of existing predictions and training runs.

    python scripts/report.py --benchmark=MIG_data.json --image_root=MIG-Bench \\
        --predictions=sft=runs/sft/eval/predictions.jsonl,grpo=runs/grpo/eval/predictions.jsonl \\
        --training=sft=runs/sft,grpo=runs/grpo --output=report.html

The report is one self-contained HTML file with scores, training curves, every row with its images
and boxes, and the groups that GRPO sampled. Without --image_root it has no images and is much
smaller.
"""

import pathlib
import sys

from absl import flags

from mirg_jax import cli
from mirg_jax.data.image_hashes import ImageHashes
from mirg_jax.errors import ConfigError
from mirg_jax.files.hashes import hash_file
from mirg_jax.mig_bench import scoring, versions
from mirg_jax.mig_bench.benchmark import load_benchmark
from mirg_jax.mig_bench.responses import check_record, load_predictions, say_changed_images
from mirg_jax.mig_bench.tables import notes
from mirg_jax.report import report

_BENCHMARK = flags.DEFINE_string(
    "benchmark", None, "Path of the benchmark, a JSON file in MIG-Bench's format.", required=True
)
_PREDICTIONS = flags.DEFINE_list(
    "predictions",
    [],
    "Predictions to report: NAME=FILE for each system, separated by commas; JSONL files as for "
    "scripts/score.py.",
)
_TRAINING = flags.DEFINE_list(
    "training",
    [],
    "Training runs whose curves and groups are shown: NAME=FOLDER for each, separated by commas.",
)
_IMAGE_ROOT = flags.DEFINE_string(
    "image_root",
    None,
    "Folder that the benchmark's image paths are relative to; by default images are not shown.",
)
_IMAGES = cli.image_flags()
_OUTPUT = flags.DEFINE_string("output", None, "Path of the HTML file to write.", required=True)
_TITLE = flags.DEFINE_string(
    "title", "", "Heading of the report; by default the benchmark's file name."
)
_PROTOCOL = flags.DEFINE_enum(
    "protocol",
    "answer",
    ["answer", "authors"],
    "Box that is scored. answer: the box inside <answer>. authors: the first box in the response, "
    "as in the evaluation of the benchmark's authors.",
)


def named(flag: str, entries: list[str]) -> dict[str, str]:
    """Parses NAME=PATH entries of a flag into paths by name."""
    found = {}
    for entry in entries:
        name, sign, path = entry.partition("=")
        if not (name and sign and path) or name in found:
            raise ConfigError(f"--{flag}: {entry!r} is not NAME=PATH with a unique name")
        found[name] = path
    return found


def main(_):
    output = cli.output_file(_OUTPUT)
    rows = load_benchmark(_BENCHMARK.value)
    runs, sha256 = {}, hash_file(_BENCHMARK.value)
    for name, path in named("predictions", _PREDICTIONS.value).items():
        check_record(path, _BENCHMARK.value, sha256, family="mirg", protocol=_PROTOCOL.value)
        responses = load_predictions(path, len(rows))
        runs[name] = report.Responses(responses, scoring.score(rows, responses, _PROTOCOL.value))
        for note in notes(runs[name].scores):
            print(f"{name}: {note}", file=sys.stderr)
    if not runs and not _TRAINING.value:
        raise ConfigError("nothing to report: give --predictions, --training or both")
    root = None
    if _IMAGE_ROOT.value is not None:
        if not pathlib.Path(_IMAGE_ROOT.value).is_dir():
            raise ConfigError(f"--image_root={_IMAGE_ROOT.value}: no such folder")
        root = _IMAGES(_IMAGE_ROOT.value)
        images = ImageHashes(root)  # one for all, which hashes each image once
        for path in named("predictions", _PREDICTIONS.value).values():
            say_changed_images(path, rows, images)
    try:
        report.write_report(
            output,
            _TITLE.value or pathlib.Path(_BENCHMARK.value).name,
            rows,
            runs,
            root,
            training=named("training", _TRAINING.value),
            benchmark=versions.name_of(rows),
        )
    except OSError as error:
        raise ConfigError(f"--output={output}: cannot be written ({error.strerror})") from error
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    cli.run(main)
