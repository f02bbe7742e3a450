"""The machines that recipes are for, and which recipes were planned for them.

8 x 80 GB GPUs are the paper's; all other machines are ours. None of what a recipe changes for a
machine changes what is learned.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Machine(NamedTuple):
    """What a recipe changes for a machine.

    Attributes:
      plan: its name for scripts/plan.py.
      devices: how many. Each computes one packed row (SFT) or one prompt with its completions
        (GRPO) at a time; where there are more devices than prompts in a step, several share one.
      changes: fields of SFT's and GRPO's recipes. Of `sampling.tensor`, no more than the model has
        key/value heads.
      sft: fields of SFT's alone.
      grpo: fields of GRPO's alone.
      models: further fields, for models that need them in SFT, in GRPO or in configs/lead.py.
    """

    plan: str
    devices: int
    changes: Mapping[str, Any] = {}
    sft: Mapping[str, Any] = {}
    grpo: Mapping[str, Any] = {}
    models: Mapping[tuple[str, str], Mapping[str, Any]] = {}  # by stage or file, and model


# Prompts of four images at most.
_SHORT = {"data.shapes.lengths": (3072,), "data.shapes.slots": (4,), "logprob_chunk": 512}


def _v5e(
    topology: str, devices: int, grpo: Mapping[str, Any] = {}, models: Mapping = {}
) -> Machine:
    """A slice of v5e whose chips share the model."""
    changes, sft = {"sampling.tensor": 8}, {"logprob_chunk": 2048}
    return Machine(f"v5e:{topology}", devices, changes, sft, {**_SHORT, **grpo}, models)


def _v6e(
    topology: str, devices: int, grpo: Mapping[str, Any] = {}, models: Mapping = {}
) -> Machine:
    """A slice of v6e whose chips share the model.

    SFT has room for two rows a chip, which share each gathering of the weights: nothing hides it.
    """
    sft = {"rows_per_micro_batch": 2 * devices, "logprob_chunk": 2048}
    grpo = {"logprob_chunk": 512, **grpo}
    return Machine(f"v6e:{topology}", devices, {"sampling.tensor": 8}, sft, grpo, models)


MACHINES = {
    # 80 GB GPUs.
    "gpu_8": Machine("h100:8", 8),
    "gpu_1": Machine("h100:1", 1, {"logprob_chunk": 512}),
    # One device of 16 GB or more: a TPU v5e chip, v6e (v6e:1x1), a GPU.
    "one": Machine(
        "v5e:1x1",
        1,
        {"logprob_chunk": 512},
        grpo={"sampling.slots": 4},
        # A token's keys and values are four times as large.
        models={("grpo", "qwen3_vl_2b"): {"sampling.slots": 2}},
    ),
    # Kaggle's 8 chips of 16 GB: a small model's weights fit on each.
    "v5e_8": Machine("v5e:2x4", 8, {"mesh.data": -1, "mesh.fsdp": 1, "logprob_chunk": 512}),
    # 16 chips of 16 GB: for GRPO weights that up to eight chips share for sampling. On 32 and 64 a
    # step's 16 prompts are one for two or four chips, which share its weights.
    "v5e_16": _v5e(
        "4x4",
        16,
        models={
            ("sft", "qwen3_vl_8b"): {"logprob_chunk": 256},
            ("lead", "qwen2_vl_7b"): {"optimizer.on_host": True},
            ("lead", "qwen2_5_vl_7b"): {"optimizer.on_host": True},
        },
    ),
    "v5e_32": _v5e("4x8", 32, {"mesh.tensor": 2}),
    "v5e_64": _v5e("8x8", 64, {"mesh.tensor": 4}),
    # 8 chips of 95 GB: there is room to keep more of each layer for the backward pass, and in SFT
    # for two rows a chip, which share each gathering of the weights.
    "v5p_8": Machine(
        "v5p:2x2x2",
        8,
        {"model.remat": "dots", "sampling.tensor": 8},
        sft={"rows_per_micro_batch": 16, "logprob_chunk": 2048},
    ),
    # 8 chips of 32 GB, and more of them.
    "v6e_8": _v6e(
        "2x4", 8, models={("grpo", "qwen3_vl_8b"): {"optimizer.on_host": True, **_SHORT}}
    ),
    "v6e_16": _v6e("4x4", 16),
    "v6e_32": _v6e("4x8", 32, {"mesh.tensor": 2}),
}

# What was compiled ahead of time, and fits: benchmarks/results/plans.json.
_TRAINING = (
    "qwen2_vl_7b,gpu_8",
    "qwen2_vl_7b,gpu_1,lora",
    "qwen2_vl_7b,v5e_16",
    "qwen2_vl_7b,v5p_8",
    "qwen2_vl_7b,v6e_8",
    "qwen2_vl_2b,gpu_1",
    "qwen2_vl_2b,one,lora",
    "qwen2_vl_2b,v5e_8,lora",
    "qwen2_5_vl_7b,gpu_8",
    "qwen2_5_vl_7b,v5e_16",
    "qwen2_5_vl_3b,gpu_8",
    "qwen2_5_vl_3b,v5e_16",
)
PLANNED = {
    "sft": (
        *_TRAINING,
        "qwen2_vl_7b,v5e_32",
        "qwen2_vl_7b,v5e_64",
        "qwen2_vl_7b,v6e_16",
        "qwen2_vl_7b,v6e_32",
        "qwen3_vl_2b,one,lora",
        "qwen3_vl_4b,gpu_8",
        "qwen3_vl_4b,gpu_1,lora",
        "qwen3_vl_4b,v5e_16",
        "qwen3_vl_4b,v6e_8",
        "qwen3_vl_8b,gpu_8",
        "qwen3_vl_8b,gpu_1,lora",
        "qwen3_vl_8b,v5e_16",
        "qwen3_vl_8b,v6e_8",
    ),
    "grpo": (
        *_TRAINING,
        "qwen2_vl_7b,v5e_32",
        "qwen2_vl_7b,v5e_64",
        "qwen2_vl_7b,v6e_16",
        "qwen2_vl_7b,v6e_32",
        "qwen3_vl_4b,gpu_8",
        "qwen3_vl_4b,gpu_1,lora",
        "qwen3_vl_4b,v5e_16",
        "qwen3_vl_4b,v6e_8",
        "qwen3_vl_8b,gpu_8",
        "qwen3_vl_8b,gpu_1,lora",
        "qwen3_vl_8b,v5e_16,lora",
        "qwen3_vl_8b,v6e_8",
    ),
    "lead": ("qwen2_vl_7b,gpu_8", "qwen2_vl_7b,v5e_16", "qwen2_vl_7b,v6e_8"),
    "inference": ("qwen2_vl_72b,v5p_8",),
}
