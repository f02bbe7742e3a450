"""Runs a binary whose second process waits for an image for ever once a step has been taken.

python tests/training/hanging.py scripts/train_sft.py --config=… --workdir=…
"""

import os
import pathlib
import runpy
import sys
import threading

from mirg_jax.data import pipeline


def make_hanging(load, workdir):
    def hang(root, path):
        if os.environ["JAX_PROCESS_ID"] == "1" and (workdir / "metrics.jsonl").exists():
            (workdir / "hanging").touch()
            threading.Event().wait()
        return load(root, path)

    return hang


if __name__ == "__main__":
    del sys.argv[0]
    (folder,) = (each.partition("=")[2] for each in sys.argv if each.startswith("--workdir="))
    pipeline.load_image = make_hanging(pipeline.load_image, pathlib.Path(folder))
    runpy.run_path(sys.argv[0], run_name="__main__")
