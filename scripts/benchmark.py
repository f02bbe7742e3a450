"""Measures one case beside its reference, in turn in one run, and writes JSON.

    python scripts/benchmark.py --case=sft_step

Cases: sft_step and generate, the small model beside transformers and torch on this machine;
grpo_update and rollout, a group's prompt computed once, beside the same with it repeated; weights,
a checkpoint of 2B size in and out, beside transformers: 25 GB of disk, --repeats=3 will do.
Needs requirements-test.txt.
"""

import pathlib

from absl import flags

from mirg_jax import cli
from mirg_jax.errors import ConfigError

_CASE = flags.DEFINE_enum(
    "case",
    None,
    ["sft_step", "generate", "grpo_update", "rollout", "weights"],
    "What to measure.",
    required=True,
)
_MODEL = flags.DEFINE_string("model", "assets/small_base", "Hugging Face folder.")
_REPEATS = flags.DEFINE_integer("repeats", 9, "Timed runs of each way, after two warm-ups.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", "runs/benchmarks", "Where the JSON is written.")


def main(_):
    try:
        from benchmarks import shared_prefix, side_by_side, small, weights
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the references need {error.name}: pip install -r requirements-test.txt"
        ) from None
    cases = small.CASES | shared_prefix.CASES
    path = pathlib.Path(_OUTPUT_DIR.value) / f"{_CASE.value}.json"
    if _CASE.value == "weights":
        weights.run(_REPEATS.value, path)
    else:
        side_by_side.run(_CASE.value, cases[_CASE.value](_MODEL.value), _REPEATS.value, path)
    print(path)


if __name__ == "__main__":
    cli.run(main)
