"""Hugging Face safetensors ↔ Orbax.

    python scripts/convert_checkpoint.py --direction=import --source=Qwen/Qwen2-VL-7B-Instruct \\
        --target=runs/qwen2_vl_7b
    python scripts/convert_checkpoint.py --direction=export --source=runs/grpo --target=exported
    python scripts/convert_checkpoint.py --direction=export --source=runs/lora --target=adapter \\
        --adapter

An import makes a folder that --config.init_from and --checkpoint take; an export makes one that
transformers loads, tokenizer included. Of a LoRA run, that is base and adapters merged, or with
--adapter the adapters alone, for peft.
"""

import pathlib

import jax.numpy as jnp
from absl import flags
from ml_collections import ConfigDict

from mirg_jax import cli, sharding
from mirg_jax.errors import ConfigError
from mirg_jax.models.layers import Precision
from mirg_jax.training import checkpoint
from mirg_jax.weights import hf, peft

_DIRECTION = flags.DEFINE_enum("direction", None, ["import", "export"], "Which way.", required=True)
_SOURCE = flags.DEFINE_string(
    "source",
    None,
    "A Hugging Face folder or hub name, a run's folder, or a checkpoint.",
    required=True,
)
_TARGET = flags.DEFINE_string("target", None, "The folder to write; new or empty.", required=True)
_DTYPE = flags.DEFINE_enum(
    "dtype", "bfloat16", ["bfloat16", "float16", "float32"], "Of the target."
)
_ADAPTER = flags.DEFINE_bool(
    "adapter", False, "Of a LoRA run: export its adapters for peft, in float32, without the base."
)


def main(_):
    target = pathlib.Path(_TARGET.value)
    if target.exists() and any(target.iterdir()):
        raise ConfigError(f"--target={target}: not empty; name another folder")
    mesh = sharding.make_mesh(data=1, fsdp=-1)
    if _ADAPTER.value:
        if _DIRECTION.value != "export":
            raise ConfigError("--adapter: adapters are exported, not imported")
        record, config, values = checkpoint.load_adapters(_SOURCE.value, mesh)
        peft.save(target, values, record.lora, config, record.base)
        print(f"{_SOURCE.value} → {target} (adapter of {record.base})")
        return
    # float16 exists on disk only: the model computes and imports in wider types.
    params = "float32" if _DTYPE.value == "float16" else _DTYPE.value
    precision = Precision(jnp.float32, jnp.dtype(params))
    model = checkpoint.load_model(_SOURCE.value, mesh, precision=precision)
    if _DIRECTION.value == "export":
        hf.save(target, model.params, model.config, dtype=_DTYPE.value)
        hf.copy_processor(model.folder, target)
    else:
        target.mkdir(parents=True, exist_ok=True)
        checkpoint.write_model_folder(target, model, ConfigDict({"imported_from": _SOURCE.value}))
        checkpoint.save_params(target, model.params)
    print(f"{_SOURCE.value} → {target} ({_DTYPE.value})")


if __name__ == "__main__":
    cli.run(main)
