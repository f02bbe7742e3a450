"""What the recipes change for a machine. None of it changes what is learned.

A device computes one packed row (SFT) or one prompt with its completions (GRPO) at a time.
`scripts/plan.py` says what each leaves free; docs/machines.md has the table.
"""

from ml_collections import ConfigDict


def _rows(config: ConfigDict, devices: int) -> ConfigDict:
    name = "prompts_per_micro_batch" if "grpo" in config else "rows_per_micro_batch"
    config[name] = devices
    if "grpo" in config:  # a step's prompts are sampled at once: decoding likes many rows
        config.sampling.prompts = config.batch_size
    return config


def gpu_8(config: ConfigDict) -> ConfigDict:
    """8 x 80 GB, the paper's set-up."""
    return _rows(config, 8)


def v5e_16(config: ConfigDict) -> ConfigDict:
    """16 chips of 16 GB: small chunks of logits, prompts of four images at most, and weights that
    four chips share for sampling."""
    config.logprob_chunk = 256
    config.sampling.tensor = 4
    if "grpo" in config:
        config.data.shapes.lengths, config.data.shapes.slots = (3072,), (4,)
    return _rows(config, 16)


def v5p_8(config: ConfigDict) -> ConfigDict:
    """8 chips of 95 GB."""
    return _rows(config, 8)


def v6e_8(config: ConfigDict) -> ConfigDict:
    """8 chips of 32 GB; four share the weights for sampling."""
    config.logprob_chunk = 512
    config.sampling.tensor = 4
    return _rows(config, 8)


def one(config: ConfigDict) -> ConfigDict:
    """A single device of 16 GB or more."""
    if "grpo" in config:
        config.sampling.slots = 4
    return gpu_1(config)


def gpu_1(config: ConfigDict) -> ConfigDict:
    """One 80 GB GPU."""
    config.logprob_chunk = 512
    return _rows(config, 1)


def v5e_8(config: ConfigDict) -> ConfigDict:
    """Kaggle's 8 chips of 16 GB; a small model's weights fit on each."""
    config.mesh.update(data=-1, fsdp=1)
    config.logprob_chunk = 512
    return _rows(config, 8)


def lora(config: ConfigDict) -> ConfigDict:
    """Adapters on a frozen base in bfloat16; their rate is ten times that of the whole model."""
    config.lora.rank = 64
    config.lora.alpha = 128
    config.model.param_dtype = "bfloat16"
    config.optimizer.learning_rate *= 10
    return config
