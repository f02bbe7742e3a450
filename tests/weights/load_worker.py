"""Loads a checkpoint onto virtual devices; run in processes of its own by test_devices.py.

    load_worker.py FOLDER PROCESSES INDEX PORT DEVICES

Prints a line of JSON: bytes read from the files and bytes of the largest host array, by mesh.
"""

import json
import sys

import jax

folder, (processes, index, port, devices) = sys.argv[1], map(int, sys.argv[2:])
jax.config.update("jax_num_cpu_devices", devices)
if processes > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=processes, process_id=index)

import jax.numpy as jnp
import numpy as np

from mirg_jax import sharding
from mirg_jax.models.config import ModelConfig
from mirg_jax.models.layers import Precision
from mirg_jax.models.options import ModelOptions
from mirg_jax.models.qwen2_vl import abstract
from mirg_jax.runs.loading import load_model
from mirg_jax.weights import hf

MESHES = {
    8: ({"fsdp": 8}, {"fsdp": 2, "tensor": 4}, {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 8}),
    4: ({"data": 1, "fsdp": 4}, {"data": 2, "fsdp": 2}),
}

read_bytes, host_bytes = [0], [0]
blocks, aligned = hf.Tensors.blocks, hf._aligned


def counted_blocks(self, name, part):
    for place, block in blocks(self, name, part):
        read_bytes[0] += block.nbytes
        yield place, block


def counted_aligned(shape, dtype):
    out = aligned(shape, dtype)
    host_bytes[0] = max(host_bytes[0], out.nbytes)
    return out


hf.Tensors.blocks, hf._aligned = counted_blocks, counted_aligned
result = {}
for dtype in (jnp.float32, jnp.bfloat16):
    precision = Precision(jnp.float32, dtype)
    config = ModelConfig.from_folder(folder)
    single = hf.by_path(hf.load(folder, abstract(config, ModelOptions(precision))[1], config))
    for sizes in MESHES[jax.device_count()]:
        mesh = sharding.make_mesh(**({"data": 1} | sizes))
        read_bytes[0] = host_bytes[0] = 0
        params = load_model(folder, mesh, ModelOptions(precision)).params
        counts = {"read": read_bytes[0], "host": host_bytes[0]}
        for path, leaf in hf.by_path(params).items():
            whole = np.asarray(single[path].get_value())
            array = leaf.get_value()
            assert array.dtype == dtype and array.shape == whole.shape, path
            assert len(array.addressable_shards) == devices, path
            for shard in array.addressable_shards:
                assert (np.asarray(shard.data) == whole[shard.index]).all(), path
        counts["parts"] = sum(
            len({str(shard.index) for shard in leaf.addressable_shards})
            * leaf.addressable_shards[0].data.nbytes
            for leaf in jax.tree.leaves(params)
        )
        counts["largest"] = max(
            leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(params)
        )
        if processes == 1:  # memory that devices may share is not written to
            kept = jax.tree.map(lambda leaf: np.asarray(leaf).copy(), params)
            again = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
            for before, after in zip(
                jax.tree.leaves(kept), jax.tree.leaves(again(params)), strict=True
            ):
                np.testing.assert_array_equal(np.asarray(after), before + before.dtype.type(1))
        result[f"{jnp.dtype(dtype)} {sizes}"] = counts
print(json.dumps(result))
