"""Trajectory SFT of the small model, on a CPU: the demo's first stage."""

import contextlib

from mirg_jax import defaults
from mirg_jax.errors import CheckpointError
from mirg_jax.models.config import ModelConfig


def tiny(config):
    """What both tiny recipes change: the small model in float32, and small shapes."""
    config.model.path = "assets/small_base"
    config.model.compute_dtype = "float32"
    config.model.remat = "none"
    config.freeze = ()
    # A device a core, each with its own rows and all of the small weights.
    config.cpu_devices = 2
    config.mesh.update(data=-1, fsdp=1)
    config.prompt.system = ""
    config.prompt.direct_instruction = "Please answer with the box."  # in words of its tokenizer
    config.data.max_pixels = 56 * 56
    config.data.shapes.slots = (3,)
    config.data.shapes.patches = (16,)
    config.optimizer.name = "muon"
    config.optimizer.warmup_ratio = 0.05
    config.logprob_chunk = 8192
    config.evaluation.batch_size = 64
    config.evaluation.max_tokens = 112
    return config


def of_base(config, base: str):
    """A tiny recipe of another base, which sees pictures in as many patches."""
    from mirg_jax.runs.loading import model_folder  # takes long to import

    config.model.path = base
    with contextlib.suppress(CheckpointError):  # whoever loads it says what is wrong
        vision = ModelConfig.from_folder(model_folder(base)).vision
        config.data.max_pixels = (4 * vision.patch_size) ** 2
    return config


def get_config():
    config = tiny(defaults.sft())
    config.num_steps = 100
    config.batch_size = 64
    config.rows_per_micro_batch = 32
    config.optimizer.learning_rate = 3e-3
    # Room for one example: at this size, attention over packed rows costs more than padding. The
    # longer half of a batch makes one micro-batch, the shorter half the other.
    config.data.shapes.lengths = (124, 156)
    return config
