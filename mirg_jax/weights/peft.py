"""Export of LoRA adapters in PEFT's format, for `peft.PeftModel.from_pretrained(base, folder)`."""

import json
import pathlib

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from mirg_jax.models.config import ModelConfig
from mirg_jax.models.lora import TOWER, Lora
from mirg_jax.weights import hf, published


def _modules(lora: Lora, config: ModelConfig) -> str:
    """Returns the regular expression by which PEFT finds the modules that have an adapter.

    It includes the path, since decoder layers and vision blocks have layers of the same name.
    """
    tower = TOWER if lora.tower else ()
    if config.vision.position_side:  # Qwen3-VL's names
        tower = tuple(f"linear_{name}" if name in ("fc1", "fc2") else name for name in tower)
    parts = {"language_model.layers": lora.targets, "visual.blocks": tower}
    found = [rf"{stack}\.\d+\.\w+\.({'|'.join(names)})" for stack, names in parts.items() if names]
    return rf".*\.({'|'.join(found)})"


def save(
    folder: str | pathlib.Path, adapters: nnx.State, lora: Lora, config: ModelConfig, base: str
) -> None:
    """Writes adapter_config.json and adapter_model.safetensors (float32).

    Args:
      folder: where to write.
      adapters: values of the adapters.
      lora: the settings that the adapters were created with.
      config: configuration of the base model.
      base: name of the base model, recorded as `base_model_name_or_path`.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    leaves = hf.by_path(adapters)
    tensors = {}
    for entry in published.table(config):
        layer, _, last = entry.path.rpartition(".")
        if last != "kernel" or f"{layer}.lora_a" not in leaves:
            continue
        for ours, theirs in (("lora_a", "lora_A"), ("lora_b", "lora_B")):
            stacked = np.asarray(jax.device_get(leaves[f"{layer}.{ours}"].get_value()))
            for i, matrix in enumerate(stacked):
                # PEFT finds modules by their names in transformers.
                name = published.newer_name(entry.name.format(i)).removesuffix(".weight")
                tensors[f"base_model.model.{name}.{theirs}.weight"] = np.ascontiguousarray(matrix.T)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": _modules(lora, config),
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(described, indent=2) + "\n")
