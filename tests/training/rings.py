"""Runs a binary with a mesh whose neighbours lie in different processes, as a TPU slice's rings do.

python tests/training/rings.py scripts/train_sft.py --config=…
"""

import runpy
import sys

import jax
import numpy as np


def make_mesh(shape, names, **options):
    devices = np.asarray(jax.devices()).reshape(2, -1)  # a row for each half of the processes
    return jax.sharding.Mesh(devices.T.reshape(shape), names, **options)


if __name__ == "__main__":
    jax.make_mesh = make_mesh
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
