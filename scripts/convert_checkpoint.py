"""Converts checkpoints between Hugging Face's safetensors and a run's folder (Orbax).

    python scripts/convert_checkpoint.py --direction=import --source=Qwen/Qwen2-VL-7B-Instruct \\
        --target=runs/qwen2_vl_7b
    python scripts/convert_checkpoint.py --direction=export --source=runs/grpo --target=exported
    python scripts/convert_checkpoint.py --direction=export --source=runs/lora --target=adapter \\
        --adapter

An import creates a run's folder, for --config.init_from and --checkpoint. An export creates a
folder that transformers loads, including the tokenizer; for a LoRA run, base and adapters are
merged, or with --adapter only the adapters are exported, for peft. Weights are converted in small
parts, so that the model need not fit into memory. To continue an interrupted conversion, run the
same command again.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
from absl import flags

from mirg_jax import cli, sharding
from mirg_jax.errors import CheckpointError, ConfigError
from mirg_jax.files import outputs
from mirg_jax.files.locks import Lock
from mirg_jax.files.places import Place
from mirg_jax.files.streams import progress_bar
from mirg_jax.models.layers import Precision
from mirg_jax.runs import checkpoints, devices, facts, loading, run_folder
from mirg_jax.weights import hf, peft

_DIRECTION = flags.DEFINE_enum(
    "direction",
    None,
    ["import", "export"],
    "Direction of the conversion. import: from safetensors to a run's folder. export: from any "
    "model to safetensors.",
    required=True,
)
_SOURCE = flags.DEFINE_string(
    "source",
    None,
    "Model to convert: a Hugging Face folder or hub name, a run's folder, or a checkpoint.",
    required=True,
)
_TARGET = flags.DEFINE_string(
    "target",
    None,
    "Folder to write; it must be new, empty, or left by an interrupted conversion.",
    required=True,
)
_DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["bfloat16", "float16", "float32"],
    "Dtype of the written weights; by default the source's for an import, and bfloat16 for an "
    "export. An import stores float16 as float32.",
)
_ADAPTER = flags.DEFINE_bool(
    "adapter",
    False,
    "Export only the adapters of a LoRA run, in float32 and in peft's format, without the base.",
)

_LOCK = "conversion.lock"


def _begin(target: pathlib.Path, weights: Place, dtype: str) -> pathlib.Path:
    """Writes a marker file that describes this conversion into the target folder.

    Raises:
      ConfigError: if the folder contains anything but the same conversion, unfinished.
    """
    marker = target / "unfinished.json"
    job = {
        "direction": _DIRECTION.value,
        "source": str(weights.resolve() if isinstance(weights, pathlib.Path) else weights),
        "weights": facts.hash_model(_SOURCE.value),
        "dtype": dtype,
    }
    if _is_used(target):
        remedy = "delete the folder or give another one"
        begun = run_folder.read_record(marker, run_folder.as_object, "a conversion", remedy)
        if begun is None:
            raise ConfigError(f"--target={target}: not empty; give another folder")
        if changes := facts.describe_changes(begun, job):
            raise ConfigError(
                f"--target={target}: another conversion was left unfinished here "
                f"({'; '.join(changes)}); {remedy}"
            )
    marker.write_text(json.dumps(job, indent=1) + "\n")
    return marker


def _is_used(target: pathlib.Path) -> bool:
    return any(path.name != _LOCK for path in target.iterdir())


def _export_adapter(target: pathlib.Path) -> None:
    if _DIRECTION.value != "export":
        raise ConfigError("--adapter: adapters can be exported, not imported")
    if _is_used(target):
        raise ConfigError(f"--target={target}: not empty; give another folder")
    mesh = sharding.make_mesh(data=1, fsdp=-1)
    record, config, values = loading.load_adapters(_SOURCE.value, mesh)
    loading.check_base(_SOURCE.value)
    peft.save(target, values, record.lora, config, record.base)
    print(f"{_SOURCE.value} → {target} (adapter of {record.base})")


def main(_):
    target = cli.output_folder(_TARGET)
    devices.open_all()
    with Lock(target / _LOCK):
        _convert(target)


def _convert(target: pathlib.Path) -> None:
    if _ADAPTER.value:
        _export_adapter(target)
        return
    export = _DIRECTION.value == "export"
    dtype = _DTYPE.value or ("bfloat16" if export else loading.stored_dtype(_SOURCE.value))
    # float16 is only written to files; imports store float32 instead.
    params = "float32" if dtype == "float16" else dtype
    model, read = loading.open_model(
        _SOURCE.value, precision=Precision(jnp.float32, jnp.dtype(params))
    )
    saved = run_folder.find_run(_SOURCE.value)
    weights = saved.folder / "params" if saved else model.folder
    count = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    nbytes = count * jnp.dtype(dtype if export else params).itemsize

    marker = _begin(target, weights, dtype)
    try:
        with progress_bar(total=nbytes, unit="B", unit_scale=True, desc=_DIRECTION.value) as bar:
            if export:
                hf.save(
                    target,
                    model.params,
                    model.config,
                    dtype=dtype,
                    read=read,
                    resume=True,
                    progress=bar.update,
                )
                hf.copy_processor(model.folder, target)
            else:
                outputs.check_renames(target)
                origin = json.dumps({"imported_from": _SOURCE.value}, indent=1)
                checkpoints.write_model_folder(target, model, origin)
                checkpoints.save_params(target, model.params, read, bar.update)
    except OSError as error:
        raise CheckpointError(
            f"{target}: {error.strerror or error}; free disk space and run the same command again"
        ) from None
    marker.unlink()
    print(f"{_SOURCE.value} → {target} ({dtype if export else params})")


if __name__ == "__main__":
    cli.run(main)
