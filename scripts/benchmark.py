"""Measures one case and its reference implementation, interleaved in one run, and writes JSON.

    python scripts/benchmark.py --case=sft_step

Cases:
- sft_step, generate: training step and generation of the small model, against transformers;
- input_pipeline: image files to patches, against transformers' processor;
- vision, rollout, grpo_update, grpo_step: GRPO with a group's images and prompt computed once,
  against the same with them repeated, and against transformers as used in TRL;
- area: Qwen2.5-VL's vision tower over images of increasing size;
- slots: sampling in which the next prompt replaces one whose completions have ended;
- answers: an evaluation with slots kept full, against batches (--model=runs/demo/sft);
- growth: GRPO updates with increasing numbers of completions and images, with a plot;
- sft_recipe, grpo_recipe: steps of --recipe with random weights, at its real size, on the devices
  at hand; SFT against transformers (with PEFT for LoRA);
- attention: the attention kernels of the devices at hand;
- weights: loading, import and export of a 2B checkpoint, against transformers (25 GB of disk);
- idle: how long the devices wait for the host in short SFT and GRPO runs, by a trace, and how many
  programs these compile (--trace=WORKDIR/profile: of the trace of any run);
- bucket_images: images a second from a disk and from a store whose requests take 50 ms;
- compose: scripts/compose.py on the labels of 100,000 photos, whole and killed (2 GB of disk);
- scaling: the predicted time of a step over the number of chips, from the committed plans, with a
  plot; nothing is run.

Needs requirements-test.txt.
"""

from absl import flags

from mirg_jax import cli
from mirg_jax.errors import ConfigError

# Timed runs of cases that take many seconds; all others have nine.
_REPEATS_OF = {
    "vision": 3,
    "area": 5,
    "rollout": 3,
    "slots": 3,
    "answers": 3,
    "grpo_update": 3,
    "grpo_step": 3,
    "growth": 2,
    "sft_recipe": 3,
    "grpo_recipe": 1,
    "attention": 9,
    "weights": 3,
    "idle": 1,
    "bucket_images": 3,
    "compose": 1,
    "scaling": 1,
}

_CASE = flags.DEFINE_enum(
    "case",
    None,
    ["sft_step", "generate", "input_pipeline", *_REPEATS_OF],
    "Case to measure.",
    required=True,
)
_MODEL = flags.DEFINE_string(
    "model", "assets/small_base", "Hugging Face folder of the model; for answers a run will do too."
)
_RECIPE = flags.DEFINE_string(
    "recipe",
    "qwen2_vl_2b,gpu_1",
    "Recipe of sft_recipe and grpo_recipe: what follows configs/sft.py: and configs/grpo.py:.",
)
_REPEATS = flags.DEFINE_integer(
    "repeats",
    None,
    "Number of timed runs of each implementation, after warm-up; by default 9, or 1 to 5 in long "
    "cases.",
    lower_bound=1,
)
_TRACE = flags.DEFINE_string(
    "trace", "", "Folder of a run's trace, which idle reads instead of training: WORKDIR/profile."
)
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", "runs/benchmarks", "Folder where the JSON file is written."
)


def main(_):
    try:
        from benchmarks import (
            answers,
            attention,
            bucket_images,
            compose,
            growth,
            grpo_step,
            idle,
            input_pipeline,
            recipes,
            scaling,
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
    modules = small, input_pipeline, vision, shared_prefix, slots, answers, grpo_step, attention
    cases = {name: case for module in modules for name, case in module.CASES.items()}
    folder = cli.output_folder(_OUTPUT_DIR)
    repeats = _REPEATS.value or _REPEATS_OF.get(_CASE.value, 9)
    path = folder / f"{_CASE.value}.json"
    if _CASE.value == "weights":
        weights.run(repeats, path)
    elif _CASE.value == "compose":
        compose.run(repeats, path)
    elif _CASE.value == "bucket_images":
        bucket_images.run(repeats, path)
    elif _CASE.value == "idle":
        idle.run(_MODEL.value, _TRACE.value, path)
    elif _CASE.value == "scaling":
        scaling.run(path)
    elif _CASE.value == "growth":
        growth.run(_MODEL.value, repeats, path)
    elif _CASE.value in recipes.CASES:
        variants = recipes.CASES[_CASE.value](_RECIPE.value)
        side_by_side.run(_CASE.value, variants, repeats, path, warm_ups=1)
    else:
        side_by_side.run(_CASE.value, cases[_CASE.value](_MODEL.value), repeats, path)
    print(path)


if __name__ == "__main__":
    cli.run(main)
