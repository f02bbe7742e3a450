"""A report of predictions and training runs that are there already.

    python scripts/report.py --benchmark=MIG_data.json --image_root=MIG-Bench \\
        --predictions=sft=runs/sft/eval/predictions.jsonl,grpo=runs/grpo/eval/predictions.jsonl \\
        --training=sft=runs/sft,grpo=runs/grpo --output=report.html

Writes one HTML file that needs nothing else: scores, curves, every row with its pictures and boxes,
and the groups that GRPO sampled. Without --image_root it has no pictures, and is far smaller.
"""

import pathlib

from absl import flags

from mirg_jax import cli
from mirg_jax.errors import ConfigError
from mirg_jax.mig_bench import scoring
from mirg_jax.mig_bench.benchmark import load_benchmark
from mirg_jax.mig_bench.responses import load_predictions
from mirg_jax.report import report

_BENCHMARK = flags.DEFINE_string("benchmark", None, "MIG-Bench JSON file.", required=True)
_PREDICTIONS = flags.DEFINE_list(
    "predictions", [], "Responses, JSONL: NAME=FILE of each system, as scripts/score.py reads them."
)
_TRAINING = flags.DEFINE_list(
    "training", [], "Folders of training runs to draw curves and groups of, each as NAME=FOLDER."
)
_IMAGE_ROOT = flags.DEFINE_string("image_root", None, "Folder the benchmark's paths begin in.")
_OUTPUT = flags.DEFINE_string("output", None, "The HTML file to write.", required=True)
_TITLE = flags.DEFINE_string("title", "", "Its heading; by default, the benchmark's file name.")
_PROTOCOL = flags.DEFINE_enum(
    "protocol",
    "answer",
    ["answer", "authors"],
    "answer: the box of <answer>. authors: the first box anywhere, as the benchmark's authors do.",
)


def named(flag: str, entries: list[str]) -> dict[str, str]:
    """NAME=PATH entries by name."""
    found = {}
    for entry in entries:
        name, sign, path = entry.partition("=")
        if not (name and sign and path) or name in found:
            raise ConfigError(f"--{flag}: {entry!r} is not NAME=PATH with a name of its own")
        found[name] = path
    return found


def main(_):
    rows = load_benchmark(_BENCHMARK.value)
    runs = {}
    for name, path in named("predictions", _PREDICTIONS.value).items():
        responses = load_predictions(path, len(rows))
        runs[name] = report.Run(responses, scoring.score(rows, responses, _PROTOCOL.value))
    if not runs and not _TRAINING.value:
        raise ConfigError("nothing to report: give --predictions, --training or both")
    if _IMAGE_ROOT.value is not None and not pathlib.Path(_IMAGE_ROOT.value).is_dir():
        raise ConfigError(f"--image_root={_IMAGE_ROOT.value}: no such folder")
    output = pathlib.Path(_OUTPUT.value)
    try:
        report.write_report(
            output,
            _TITLE.value or pathlib.Path(_BENCHMARK.value).name,
            rows,
            runs,
            _IMAGE_ROOT.value,
            training=named("training", _TRAINING.value),
        )
    except OSError as error:
        raise ConfigError(f"--output={output}: cannot be written ({error.strerror})") from error
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    cli.run(main)
