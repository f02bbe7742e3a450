"""Scores the predictions of any system on MIG-Bench.

    python scripts/score.py --benchmark=MIG_data.json --predictions=out.jsonl --output=scores.json

The benchmark may also be rows of your own, a rows.jsonl as in docs/training.md, each with one
target. A prediction is one line of JSON, `{"index": i, "response": "…"}`, where i is the row in the
benchmark, from 0, and the response is the model's text; --family determines the coordinates of its
boxes. Prints the paper's table; the output file also has all thresholds and rows.
"""

import json
import pathlib
import sys

from absl import flags

from mirg_jax import cli
from mirg_jax.data.image_hashes import ImageHashes
from mirg_jax.errors import ConfigError
from mirg_jax.files import outputs
from mirg_jax.files.hashes import hash_file
from mirg_jax.mig_bench import families, scoring, versions
from mirg_jax.mig_bench.benchmark import load_benchmark
from mirg_jax.mig_bench.responses import check_record, load_predictions, say_changed_images
from mirg_jax.mig_bench.tables import format_table, notes

_BENCHMARK = flags.DEFINE_string(
    "benchmark",
    None,
    "Path of the benchmark, a JSON file in MIG-Bench's format, or of rows of your own with one "
    "target each, as for evaluate.py.",
    required=True,
)
_PREDICTIONS = flags.DEFINE_string(
    "predictions", None, "Path of the predictions, a JSONL file.", required=True
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Path of the JSON file to write the scores to.", required=True
)
_PROTOCOL = flags.DEFINE_enum(
    "protocol",
    "answer",
    ["answer", "authors"],
    "Box that is scored. answer: the box inside <answer>. authors: the first box in the response, "
    "as in the evaluation of the benchmark's authors.",
)
_FAMILY = flags.DEFINE_enum(
    "family",
    None,
    sorted(families.FAMILIES),
    "Family of the model, as in evaluate_server.py; by default a model trained here.",
)
_IMAGE_ROOT = flags.DEFINE_string(
    "image_root",
    "",
    "Folder that image paths are relative to; needed for families that answer in pixels. If it is "
    "given, a line says whether the predictions were made about other images.",
)
_IMAGES = cli.image_flags()
_MAX_PIXELS = flags.DEFINE_integer(
    "max_pixels",
    families.MAX_PIXELS,
    "Maximum number of pixels of the images given to a model that answers in pixels.",
    lower_bound=families.MIN_PIXELS,
)
_MIN_PIXELS = flags.DEFINE_integer(
    "min_pixels",
    families.MIN_PIXELS,
    "Minimum number of pixels of the images given to a model that answers in pixels.",
    lower_bound=1,
)
_SKIP_IMPOSSIBLE = flags.DEFINE_bool(
    "skip_impossible",
    False,
    "Skip rows whose ground-truth box is inverted, which no prediction can hit.",
)
_STRICT = flags.DEFINE_bool(
    "strict", False, "Count a hit only if the IoU is above 0.5; by default 0.5 is a hit too."
)
_DIRECT = flags.DEFINE_bool(
    "direct",
    False,
    "Answers without thoughts were asked for, which is then the right format.",
)
_MIGICIAN_SCALING = flags.DEFINE_bool(
    "migician_scaling",
    False,
    "Rescale y coordinates as the benchmark's authors do for their own model, Migician.",
)


def main(_):
    output = cli.output_file(_OUTPUT)
    rows = load_benchmark(_BENCHMARK.value)
    benchmark_sha256 = hash_file(_BENCHMARK.value)
    name = _FAMILY.value or "mirg"
    family = families.FAMILIES[name]
    pixels = {"max_pixels": _MAX_PIXELS.value, "min_pixels": _MIN_PIXELS.value}
    reading = {"family": name, "protocol": _PROTOCOL.value}
    reading |= pixels if family.numbers == "pixels" else {}
    check_record(_PREDICTIONS.value, _BENCHMARK.value, benchmark_sha256, **reading)
    responses = load_predictions(_PREDICTIONS.value, len(rows))
    root = _IMAGES(_IMAGE_ROOT.value) if _IMAGE_ROOT.value else ""
    if root:
        say_changed_images(_PREDICTIONS.value, rows, ImageHashes(root))
    how = {
        "protocol": _PROTOCOL.value,
        "skip_impossible": _SKIP_IMPOSSIBLE.value,
        "strict": _STRICT.value,
    }
    if _FAMILY.value is not None and _MIGICIAN_SCALING.value:
        raise ConfigError("--migician_scaling: --family=migician has it")
    if _FAMILY.value is None:
        scores = scoring.score(
            rows, responses, **how, scale_y=_MIGICIAN_SCALING.value, direct=_DIRECT.value
        )
    else:
        scores = families.score(family, rows, responses, **how, image_root=root, **pixels)
    interval = scores.overall.interval
    benchmark_name = versions.name_of(rows)
    known = {"benchmark_sha256": benchmark_sha256, "benchmark_name": benchmark_name}
    result = known | scores.to_json()
    outputs.write_text(output, json.dumps(result, indent=1) + "\n", "--output")

    print(f"benchmark: {benchmark_name}")
    print(format_table({pathlib.Path(_PREDICTIONS.value).stem: scores}))
    for note in notes(scores):
        print(note, file=sys.stderr)
    print(
        f"{scores.protocol} protocol, {scores.overall.n} rows, {scores.missing} without a response;"
        f" hit rate over all rows {100 * interval.mean:.2f} %"
        f" (95 % interval {100 * interval.low:.2f} to {100 * interval.high:.2f})"
    )


if __name__ == "__main__":
    cli.run(main)
