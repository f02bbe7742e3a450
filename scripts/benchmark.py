"""Measures one case beside its reference, in turn in one run, and writes JSON.

    python scripts/benchmark.py --case=sft_step

Cases: sft_step and generate, the small model beside transformers and torch on this machine;
input_pipeline, image files to patches, beside transformers' processor;
vision, rollout, grpo_update and grpo_step, a group's images and prompt computed once, beside the
same with them repeated and beside transformers as TRL uses it;
area, Qwen2.5-VL's tower over larger and larger images;
slots, prompts that take the places of those that have ended;
growth, an update of more and more completions and images, with a plot;
weights, a checkpoint of 2B size in and out, beside transformers (25 GB of disk).
Needs requirements-test.txt.
"""

import pathlib

from absl import flags

from mirg_jax import cli
from mirg_jax.errors import ConfigError

# How often cases are timed of which a run takes many seconds; others nine times.
_REPEATS_OF = {
    "vision": 3,
    "area": 5,
    "rollout": 3,
    "slots": 3,
    "grpo_update": 3,
    "grpo_step": 3,
    "growth": 2,
    "weights": 3,
}

_CASE = flags.DEFINE_enum(
    "case",
    None,
    ["sft_step", "generate", "input_pipeline", *_REPEATS_OF],
    "What to measure.",
    required=True,
)
_MODEL = flags.DEFINE_string("model", "assets/small_base", "Hugging Face folder.")
_REPEATS = flags.DEFINE_integer(
    "repeats", None, "Timed runs of each way, after two warm-ups; else 9, or 2 or 3 in long cases."
)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", "runs/benchmarks", "Where the JSON is written.")


def main(_):
    try:
        from benchmarks import (
            growth,
            grpo_step,
            input_pipeline,
            shared_prefix,
            side_by_side,
            slots,
            small,
            vision,
            weights,
        )
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the references need {error.name}: pip install -r requirements-test.txt"
        ) from None
    modules = small, input_pipeline, vision, shared_prefix, slots, grpo_step
    cases = {name: case for module in modules for name, case in module.CASES.items()}
    repeats = _REPEATS.value or _REPEATS_OF.get(_CASE.value, 9)
    path = pathlib.Path(_OUTPUT_DIR.value) / f"{_CASE.value}.json"
    if _CASE.value == "weights":
        weights.run(repeats, path)
    elif _CASE.value == "growth":
        growth.run(_MODEL.value, repeats, path)
    else:
        side_by_side.run(_CASE.value, cases[_CASE.value](_MODEL.value), repeats, path)
    print(path)


if __name__ == "__main__":
    cli.run(main)
