"""Says whether a recipe fits a machine and how long it takes there, by compiling its step for it.

    python scripts/plan.py --config=configs/grpo.py:qwen2_vl_7b,v5e_16 --machine=v5e:4x4

The machine itself is not needed: a plan takes minutes and a few GB on an ordinary computer. Prints
the memory per device by part; the predicted time of each program, a step and the whole run; and
where it goes (docs/machines.md says how far to trust it). If the recipe does not fit, the program
exits with status 2 and one line with the reason. Needs requirements-plan.txt.
"""

import json
import pathlib
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import config_flags

from mirg_jax import cli
from mirg_jax.errors import ConfigError
from mirg_jax.files import outputs
from mirg_jax.planning import machines

if TYPE_CHECKING:
    from mirg_jax.runs.settings import Settings

machines.prepare_environment()

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Recipe: a Python file in configs/ that returns the settings."
)
_MACHINE = flags.DEFINE_string(
    "machine",
    None,
    "Machine to plan for as KIND:TOPOLOGY, such as v5e:4x4, v6e:2x4, tpu7x:2x2x1 or h100:8.",
    required=True,
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Path of a JSON file to write the plan to; by default none is written."
)
_PRICE = flags.DEFINE_float(
    "price", None, "Dollars per chip (or GPU) and hour, for the cost of the whole run.", 0.0
)
_SEARCH = flags.DEFINE_bool(
    "search",
    False,
    "Find the model.remat and the micro-batch that fit and take the least predicted time; for GPUs "
    "none is predicted: the least recomputation and then the largest micro-batch.",
)
_REPEATED = flags.DEFINE_bool(
    "repeated",
    False,
    "Instead of planning the recipe, find the largest micro-batch of GRPO's update with shared "
    "prompts, and with the usual form, in which each completion has its own copy of the prompt.",
)
_PUBLISH = flags.DEFINE_bool(
    "publish",
    False,
    "Put the plan into benchmarks/results/plans.json and the table of docs/machines.md, as for a "
    "recipe that is published in configs/machines.py.",
)
flags.mark_flag_as_required("config")


def check_mode(settings: "Settings") -> None:
    """Checks that the recipe has what --repeated or --search looks at.

    Raises:
      ConfigError: if it hasn't, or both are given.
    """
    if _REPEATED.value and _SEARCH.value:
        raise ConfigError("--repeated and --search are two plans; give one of them")
    if _REPEATED.value and settings.stage != "grpo":
        raise ConfigError(
            f"--repeated compares GRPO's updates, and --config is for {settings.stage}; give a "
            "recipe for grpo, or leave it out"
        )
    if _SEARCH.value and settings.stage == "inference":
        raise ConfigError(
            "--search looks for the fastest training, and --config is for inference; leave it out"
        )


def main(_):
    from mirg_jax.planning import plans
    from mirg_jax.runs.settings import read

    if _PUBLISH.value and (
        _REPEATED.value or _SEARCH.value or config_flags.get_override_values(flags.FLAGS["config"])
    ):
        raise ConfigError("--publish is for a recipe as it is; leave the other settings out")
    output = cli.output_file(_OUTPUT) if _OUTPUT.value else None
    machine = machines.Machine.parse(_MACHINE.value)
    settings = read(_CONFIG.value)
    check_mode(settings)
    if _REPEATED.value:
        from benchmarks import planned_prefix

        plan = planned_prefix.compare(settings, machine, print)
    elif _SEARCH.value:
        plan, _ = plans.search(settings, machine, print, _PRICE.value)
    else:
        plan = plans.plan(settings, machine, print, _PRICE.value)
    if output:
        outputs.write_text(output, json.dumps(plan, indent=1) + "\n", "--output")
    if not _REPEATED.value:
        plans.require_fit(plan)
    if _PUBLISH.value:
        from benchmarks import planned

        recipe = pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"])).name
        planned.publish(f"{recipe}@{machine.name}", plan)


if __name__ == "__main__":
    cli.run(main)
