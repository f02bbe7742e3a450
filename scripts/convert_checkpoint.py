"""Hugging Face safetensors ↔ Orbax.

    python scripts/convert_checkpoint.py --direction=import --source=Qwen/Qwen2-VL-7B-Instruct \\
        --target=runs/qwen2_vl_7b
    python scripts/convert_checkpoint.py --direction=export --source=runs/grpo --target=exported
    python scripts/convert_checkpoint.py --direction=export --source=runs/lora --target=adapter \\
        --adapter

An import makes a folder that --config.init_from and --checkpoint take; an export makes one that
transformers loads, tokenizer included: of a LoRA run, base and adapters merged, or with --adapter
the adapters alone, for peft. Weights go from file to file by parts, so that the model needn't fit
into memory. A command that was interrupted goes on when it is given again.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
from absl import flags
from tqdm import tqdm

from mirg_jax import cli, sharding
from mirg_jax.errors import CheckpointError, ConfigError
from mirg_jax.models.layers import Precision
from mirg_jax.runs import checkpoints, loading, run_folder
from mirg_jax.weights import hf, peft

_DIRECTION = flags.DEFINE_enum("direction", None, ["import", "export"], "Which way.", required=True)
_SOURCE = flags.DEFINE_string(
    "source",
    None,
    "A Hugging Face folder or hub name, a run's folder, or a checkpoint.",
    required=True,
)
_TARGET = flags.DEFINE_string(
    "target", None, "The folder to write; new, empty or left unfinished.", required=True
)
_DTYPE = flags.DEFINE_enum(
    "dtype", "bfloat16", ["bfloat16", "float16", "float32"], "Of the target."
)
_ADAPTER = flags.DEFINE_bool(
    "adapter", False, "Of a LoRA run: export its adapters for peft, in float32, without the base."
)


def _begin(target: pathlib.Path, weights: pathlib.Path) -> pathlib.Path:
    """Marks the target as being made, of these weights; refuses one that holds anything else."""
    marker = target / "unfinished.json"
    job = {
        "direction": _DIRECTION.value,
        "source": str(weights.resolve()),
        "modified": max(file.stat().st_mtime_ns for file in weights.iterdir()),
        "dtype": _DTYPE.value,
    }
    text = json.dumps(job, indent=1) + "\n"
    if target.exists() and any(target.iterdir()):
        if not marker.exists():
            raise ConfigError(f"--target={target}: not empty; name another folder")
        if marker.read_text() != text:
            raise ConfigError(
                f"--target={target}: another conversion was left unfinished here "
                f"({marker.name} says which); delete it or name another folder"
            )
    target.mkdir(parents=True, exist_ok=True)
    marker.write_text(text)
    return marker


def _export_adapter(target: pathlib.Path) -> None:
    if _DIRECTION.value != "export":
        raise ConfigError("--adapter: adapters are exported, not imported")
    if target.exists() and any(target.iterdir()):
        raise ConfigError(f"--target={target}: not empty; name another folder")
    mesh = sharding.make_mesh(data=1, fsdp=-1)
    record, config, values = loading.load_adapters(_SOURCE.value, mesh)
    peft.save(target, values, record.lora, config, record.base)
    print(f"{_SOURCE.value} → {target} (adapter of {record.base})")


def main(_):
    target = pathlib.Path(_TARGET.value)
    if _ADAPTER.value:
        _export_adapter(target)
        return
    # float16 exists on disk only: the model computes and imports in wider types.
    params = "float32" if _DTYPE.value == "float16" else _DTYPE.value
    model, read = loading.open_model(
        _SOURCE.value, precision=Precision(jnp.float32, jnp.dtype(params))
    )
    export = _DIRECTION.value == "export"
    saved = run_folder.find_run(_SOURCE.value)
    weights = saved.folder / "params" if saved else model.folder
    count = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    nbytes = count * jnp.dtype(_DTYPE.value if export else params).itemsize

    marker = _begin(target, weights)
    try:
        with tqdm(total=nbytes, unit="B", unit_scale=True, desc=_DIRECTION.value) as bar:
            if export:
                hf.save(
                    target,
                    model.params,
                    model.config,
                    dtype=_DTYPE.value,
                    read=read,
                    resume=True,
                    progress=bar.update,
                )
                hf.copy_processor(model.folder, target)
            else:
                origin = json.dumps({"imported_from": _SOURCE.value}, indent=1)
                checkpoints.write_model_folder(target, model, origin)
                checkpoints.save_params(target, model.params, read, bar.update)
    except OSError as error:
        raise CheckpointError(
            f"{target}: {error.strerror or error}; make room and give the same command again"
        ) from None
    marker.unlink()
    print(f"{_SOURCE.value} → {target} ({_DTYPE.value})")


if __name__ == "__main__":
    cli.run(main)
