"""Scores the predictions of any system on MIG-Bench.

    python scripts/score.py --benchmark=MIG_data.json --predictions=out.jsonl --output=scores.json

A prediction is one line of JSON, `{"index": i, "response": "…"}`, with i the row in the benchmark
from 0 and the response as the model gave it; --family says what its numbers mean. Prints the
paper's table; the JSON file also has every threshold and every row.
"""

import json
import pathlib

from absl import flags

from mirg_jax import cli
from mirg_jax.errors import ConfigError
from mirg_jax.mig_bench import families, scoring
from mirg_jax.mig_bench.benchmark import load_benchmark
from mirg_jax.mig_bench.responses import load_predictions
from mirg_jax.mig_bench.tables import format_table

_BENCHMARK = flags.DEFINE_string("benchmark", None, "MIG-Bench JSON file.", required=True)
_PREDICTIONS = flags.DEFINE_string("predictions", None, "Responses, JSONL.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Where to write the scores, JSON.", required=True)
_PROTOCOL = flags.DEFINE_enum(
    "protocol",
    "answer",
    ["answer", "authors"],
    "answer: the box of <answer>. authors: the first box anywhere, as the benchmark's authors do.",
)
_FAMILY = flags.DEFINE_enum(
    "family",
    None,
    sorted(families.FAMILIES),
    "Of the model, as evaluate_server.py has them; else our own.",
)
_IMAGE_ROOT = flags.DEFINE_string(
    "image_root", "", "Folder of the images, for a family that answers in pixels."
)
_MAX_PIXELS = flags.DEFINE_integer(
    "max_pixels",
    families.MAX_PIXELS,
    "Of an image as such a model got it.",
    lower_bound=families.MIN_PIXELS,
)
_SKIP_IMPOSSIBLE = flags.DEFINE_bool(
    "skip_impossible", False, "Leave out rows whose own answer is inverted and cannot be hit."
)
_STRICT = flags.DEFINE_bool("strict", False, "A hit is an IoU above 0.5, not from 0.5 up.")
_MIGICIAN_SCALING = flags.DEFINE_bool(
    "migician_scaling", False, "Stretch y as the benchmark's authors do for their own model."
)


def main(_):
    rows = load_benchmark(_BENCHMARK.value)
    responses = load_predictions(_PREDICTIONS.value, len(rows))
    how = {
        "protocol": _PROTOCOL.value,
        "skip_impossible": _SKIP_IMPOSSIBLE.value,
        "strict": _STRICT.value,
    }
    if _FAMILY.value is not None and _MIGICIAN_SCALING.value:
        raise ConfigError("--migician_scaling: --family=migician has it")
    if _FAMILY.value is None:
        scores = scoring.score(rows, responses, **how, scale_y=_MIGICIAN_SCALING.value)
    else:
        images = {"image_root": _IMAGE_ROOT.value, "max_pixels": _MAX_PIXELS.value}
        family = families.FAMILIES[_FAMILY.value]
        scores = families.score(family, rows, responses, **how, **images)
    interval = scores.overall.interval
    result = scores.to_json()
    output = pathlib.Path(_OUTPUT.value)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--output={output}: cannot be written ({error.strerror})") from error

    print(format_table({pathlib.Path(_PREDICTIONS.value).stem: scores}))
    print(
        f"{scores.protocol} protocol, {scores.overall.n} rows, {scores.missing} without a response;"
        f" hit rate over all rows {100 * interval.mean:.2f} %"
        f" (95 % interval {100 * interval.low:.2f} to {100 * interval.high:.2f})"
    )


if __name__ == "__main__":
    cli.run(main)
