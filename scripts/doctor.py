"""Checks a machine before a run: devices, processes, files, memory, and a small step of each stage.

    python scripts/doctor.py --config=configs/grpo_qwen2_vl_7b.py --workdir=runs/grpo \\
        --config.data.train_json=train.json --config.data.image_root=images

Takes the flags of the run, for SFT or GRPO, and starts as it does: on every host of several. Prints
a line for each check, "ok", "warning" or "problem", with what to do, in less than two minutes where
nothing is compiled for the memory. Ends with status 2 if something would stop the run. Afterwards
all is as it was.
"""

import sys

from absl import flags
from ml_collections import config_flags

from mirg_jax import cli
from mirg_jax.doctor import examine
from mirg_jax.errors import ConfigError
from mirg_jax.files import places
from mirg_jax.runs.settings import read

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Recipe: a Python file in configs/ that returns the settings."
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run, for checkpoints, metrics and logs; may be gs://BUCKET/FOLDER.",
    required=True,
)
_COMPILE = flags.DEFINE_bool(
    "compile",
    None,
    "Whether the recipe's programs are compiled, so that the memory of activations is counted too. "
    "Takes minutes for large models, whose programs the run then finds compiled. By default they "
    "are on accelerators.",
)
_PATIENCE = flags.DEFINE_float(
    "patience",
    120.0,
    "Seconds that a check may take, and that processes wait for one another, before the program "
    "ends with a line that says so.",
    lower_bound=1.0,
)
flags.mark_flag_as_required("config")


def main(_):
    settings = read(_CONFIG.value)
    if settings.stage == "inference":
        raise ConfigError("--config: this recipe is for inference; give one for sft or grpo")
    if not _WORKDIR.value.strip():
        raise ConfigError("--workdir: is empty; give a path")
    workdir = places.of(_WORKDIR.value, "--workdir")
    if examine.examine(settings, workdir, compiled=_COMPILE.value, patience=_PATIENCE.value):
        sys.exit(2)


if __name__ == "__main__":
    cli.run(main)
