"""Time and memory of loading, importing and exporting a 2B checkpoint, compared with transformers.

Each measurement runs in a separate process, and implementations are interleaved. Weights are random
with the shapes of Qwen2-VL-2B, and the files are in the page cache. With its default dtype (that of
the files), `from_pretrained` maps the files and reads nothing until a weight is used. It is
measured like this, and also with each page of each weight touched once.
"""

import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import ml_dtypes
import numpy as np

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
SHARD_BYTES = 1_500_000_000


def write_checkpoint(folder: pathlib.Path, config) -> int:
    """Random bfloat16 weights in several files; returns their bytes."""
    from mirg_jax.models.qwen2_vl import abstract
    from mirg_jax.weights import hf

    rng = np.random.default_rng(0)

    def random(path, index, out):
        bits = rng.integers(0, 2**16, math.prod(out.shape), np.uint16)
        bits = bits & 0x83FF | 0x3C00  # random signs and mantissas; magnitudes about 0.01 to 4
        out[...] = bits.view(ml_dtypes.bfloat16).reshape(out.shape)

    _, state = abstract(config)
    hf.save(folder, state, config, dtype="bfloat16", shard_bytes=SHARD_BYTES, read=random)
    written = json.loads((folder / "config.json").read_text()) | {"dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(written))  # published configs have a dtype
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _ours(way: str, dtype: str, source: pathlib.Path, target: pathlib.Path):
    import jax
    import jax.numpy as jnp

    from mirg_jax import sharding
    from mirg_jax.models.layers import Precision
    from mirg_jax.models.options import ModelOptions
    from mirg_jax.runs import checkpoints, loading
    from mirg_jax.weights import hf

    precision = Precision(jnp.float32, jnp.dtype(dtype))

    def load():
        params = loading.load_model(source, sharding.make_mesh(), ModelOptions(precision)).params
        return jax.block_until_ready(params)

    def into_orbax():
        model, read = loading.open_model(source, precision=precision)
        checkpoints.save_params(target, model.params, read)

    def export():
        model, read = loading.open_model(source, precision=precision)
        hf.save(target, model.params, model.config, dtype=dtype, read=read)

    return {"load": load, "import": into_orbax, "export": export}[way]


def _theirs(way: str, dtype: str, source: pathlib.Path, target: pathlib.Path):
    import torch
    from transformers import Qwen2VLForConditionalGeneration

    options = {} if dtype == "default" else {"dtype": getattr(torch, dtype)}

    def load():
        return Qwen2VLForConditionalGeneration.from_pretrained(source, **options)

    def load_and_touch():
        model, page = load(), os.sysconf("SC_PAGESIZE")
        for parameter in model.parameters():
            parameter.data.flatten()[:: page // parameter.element_size()].float().sum().item()
        return model

    return {
        "load": load,
        "load_and_touch": load_and_touch,
        "load_and_save": lambda: load().save_pretrained(target),
    }[way]


# Our measurements, then those they are compared with.
WAYS = [
    ("mirg_jax", "import", "bfloat16"),
    ("mirg_jax", "import", "float32"),
    ("mirg_jax", "load", "bfloat16"),
    ("mirg_jax", "load", "float32"),
    ("mirg_jax", "export", "bfloat16"),
    ("transformers", "load", "default"),
    ("transformers", "load_and_touch", "bfloat16"),
    ("transformers", "load", "float32"),
    ("transformers", "load_and_save", "bfloat16"),
]
PAIRS = [
    ("mirg_jax import bfloat16", "transformers load_and_touch bfloat16"),
    ("mirg_jax import bfloat16", "transformers load_and_save bfloat16"),
    ("mirg_jax import float32", "transformers load float32"),
    ("mirg_jax load bfloat16", "transformers load_and_touch bfloat16"),
    ("mirg_jax load float32", "transformers load float32"),
    ("mirg_jax export bfloat16", "transformers load_and_save bfloat16"),
]


def _measure(side: str, way: str, dtype: str, source: pathlib.Path, target: pathlib.Path) -> None:
    """In a process of its own: prints what it took."""
    do = {"mirg_jax": _ours, "transformers": _theirs}[side](way, dtype, source, target)
    start, cpu = time.perf_counter(), sum(os.times()[:2])
    kept = do()
    seconds, cpu = time.perf_counter() - start, sum(os.times()[:2]) - cpu
    status = pathlib.Path("/proc/self/status").read_text()
    # Not ru_maxrss, which starts at the size of the parent process.
    (peak,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    del kept
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "peak_bytes": int(peak) * 1024}))


def run(repeats: int, path: pathlib.Path, config=None) -> None:
    """Measures every way `repeats` times in turn, and writes JSON."""
    from benchmarks import side_by_side
    from mirg_jax.models.sizes import QWEN2_VL_2B

    measured: dict[str, list[dict]] = {" ".join(way): [] for way in WAYS}
    with tempfile.TemporaryDirectory() as scratch:
        files, imported = pathlib.Path(scratch) / "files", pathlib.Path(scratch) / "imported"
        size = write_checkpoint(files, config or QWEN2_VL_2B)
        for side, way, dtype in WAYS * repeats:
            target = pathlib.Path(scratch) / "target"
            if (way, dtype) == ("import", "bfloat16"):
                shutil.rmtree(imported, ignore_errors=True)
                (imported / "model").mkdir(parents=True)
                shutil.copy(files / "config.json", imported / "model")
                target = imported
            os.sync()  # so that this run doesn't wait for the previous one's writes
            start = time.perf_counter()
            source = imported if way == "export" else files
            command = [sys.executable, "-m", "benchmarks.weights", side, way, dtype, source, target]
            done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(done.stderr)
            result = json.loads(done.stdout.splitlines()[-1])
            name = f"{side} {way} {dtype}"
            measured[name].append(result | {"process_seconds": time.perf_counter() - start})
            print(
                f"{name}: {result['seconds']:.2f} s ({result['cpu_seconds']:.2f} s of CPU), "
                f"peak {result['peak_bytes'] / 1e9:.2f} GB",
                flush=True,
            )
            if target != imported:
                shutil.rmtree(target, ignore_errors=True)

    def over(ours: str, theirs: str, what: str) -> dict[str, float]:
        pairs = zip(measured[ours], measured[theirs], strict=True)
        return side_by_side.spread([b[what] / a[what] for a, b in pairs])

    result = {"case": "weights"} | side_by_side.environment()
    result |= {"repeats": repeats, "file_bytes": size}
    result["ways"] = {
        name: {key: side_by_side.spread([run[key] for run in runs]) for key in runs[0]}
        for name, runs in measured.items()
    }
    result["theirs_over_ours"] = {
        f"{theirs} / {ours}": {
            what: over(ours, theirs, what) for what in ("peak_bytes", "seconds", "cpu_seconds")
        }
        for ours, theirs in PAIRS
    }
    side_by_side.write(path, result)


if __name__ == "__main__":
    _measure(*sys.argv[1:4], *map(pathlib.Path, sys.argv[4:]))
