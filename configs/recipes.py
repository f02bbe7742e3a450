"""How a recipe is put together from the words behind the colon of `--config=configs/STAGE.py:…`.

The words are a model of configs/models.py, a machine of configs/machines.py, and perhaps "lora".
"""

import sys
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

from ml_collections import ConfigDict

from configs.machines import MACHINES, PLANNED, Machine
from configs.models import MODELS
from mirg_jax import defaults
from mirg_jax.errors import ConfigError
from mirg_jax.models.sizes import PUBLISHED

T = TypeVar("T")


def choose(file: str, what: str, name: str, table: Mapping[str, T]) -> T:
    """The entry of a table that a word names.

    Args:
      file: the config file that was given the word.
      what: what the table holds.

    Raises:
      ConfigError: for another name than those there are.
    """
    if name not in table:
        raise ConfigError(f"{file}: no {what} {name!r}; there are {', '.join(table)}")
    return table[name]


class Choice(NamedTuple):
    """What the words of an argument name."""

    model: str
    path: str  # the model's on the hub
    family: str
    kv_heads: int  # of the model
    machine: Machine
    lora: bool


def parse(file: str, argument: str, *, machine: str = "gpu_8", lora: bool = True) -> Choice:
    """Looks up MODEL[,MACHINE[,lora]], and warns of what was never planned.

    Args:
      file: the name of the config file.
      machine: of a model alone.
      lora: whether the stage has adapters.

    Raises:
      ConfigError: for a name that isn't known, or a word too many.
    """
    planned, file = PLANNED[file], f"configs/{file}.py"
    model, *words = argument.split(",")
    path = choose(file, "model", model, MODELS)
    machine, *rest = words or [machine]
    where = choose(file, "machine", machine, MACHINES)
    if rest not in ([], ["lora"] if lora else []):
        form = "MODEL,MACHINE or MODEL,MACHINE,lora" if lora else "MODEL,MACHINE"
        raise ConfigError(f"{file}: no {','.join(rest)!r} after the machine; give {form}")
    recipe = ",".join((model, machine, *rest))
    if recipe not in planned:
        print(
            f"{file}:{recipe} was never planned; to see whether it fits: "
            f"make plan CONFIG={file}:{recipe} MACHINE={where.plan}",
            file=sys.stderr,
        )
    sizes = PUBLISHED[path]
    return Choice(model, path, sizes.model_type, sizes.text.num_kv_heads, where, bool(rest))


def training(stage: str, config: ConfigDict, argument: str, file: str = "") -> ConfigDict:
    """A recipe of SFT or GRPO: the stage's defaults, changed as the argument says.

    Args:
      stage: "sft" or "grpo".
      config: the stage's defaults.
      argument: the words.
      file: the name of the config file; "" for the stage's.

    Raises:
      ConfigError: for a name that isn't known, or a word too many.
    """
    choice = parse(file or stage, argument)
    machine = choice.machine
    config.model.path = choice.path
    defaults.for_family(config, choice.family)
    config.update_from_flattened_dict(machine.changes)
    config.sampling.tensor = min(config.sampling.tensor, choice.kv_heads)
    if stage == "grpo":
        config.update_from_flattened_dict(machine.grpo)
        config.prompts_per_micro_batch = min(machine.devices, config.batch_size)
        # A step's prompts are sampled at once: decoding likes many rows.
        config.sampling.prompts = config.batch_size
    else:
        config.rows_per_micro_batch = machine.devices
        config.update_from_flattened_dict(machine.sft)
    for name in dict.fromkeys((stage, file or stage)):
        config.update_from_flattened_dict(machine.models.get((name, choice.model), {}))
    return adapters(config) if choice.lora else config


def adapters(config: ConfigDict) -> ConfigDict:
    """LoRA on a frozen base in bfloat16; its rate is ten times that of the whole model."""
    config.lora.rank = 64
    config.lora.alpha = 128
    config.model.param_dtype = "bfloat16"
    config.optimizer.learning_rate *= 10
    return config
