"""Reads data as a training run would: what is used, what is left out and why, how large it is.

    python scripts/check_data.py mine/rows.jsonl --config=configs/grpo_qwen2_vl_7b.py \\
        --config.data.image_root=mine --output_dir=runs/check

Takes files of training rows, or those of the recipe if none is given, and the recipe's held-out
rows; needs no accelerator, and of the model its tokenizer alone. Prints what was found, and writes
OUTPUT_DIR/report.html with pictures, check.json with the figures, and rejected.jsonl with all that
is left out. Ends with status 2 if nothing of a file can be used. Ctrl-C ends it, and what was read
until then is told.
"""

import sys

import jax
from absl import flags
from ml_collections import config_flags

from mirg_jax import cli
from mirg_jax.data_check.check import check
from mirg_jax.errors import ConfigError
from mirg_jax.files import places
from mirg_jax.runs.settings import read

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Recipe: a Python file in configs/ that returns the settings."
)
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Folder of the page and the lists; without it, they are not written."
)
flags.mark_flag_as_required("config")


def main(argv):
    settings = read(_CONFIG.value)
    if settings.stage == "inference":
        raise ConfigError("--config: this recipe is for inference; give one for sft or grpo")
    output_dir = None
    if _OUTPUT_DIR.value is not None:
        cli.output_folder(_OUTPUT_DIR)
        output_dir = places.local(_OUTPUT_DIR.value, "--output_dir")
    jax.config.update("jax_platforms", "cpu")  # an accelerator may be another program's
    if received := check(settings, argv[1:], output_dir, print):
        sys.exit(128 + received)


if __name__ == "__main__":
    cli.run(main)
