"""Will it fit? Compiles a recipe's step for a machine that isn't here and says where memory goes.

    python scripts/plan.py --config=configs/grpo.py:qwen2_vl_7b,v5e_16 --machine=v5e:4x4

Needs requirements-plan.txt; a plan takes minutes and a few GB on an ordinary computer. Exits with
status 2, and the reason in a line, if the recipe does not fit.
"""

import json
import pathlib

from absl import flags
from ml_collections import config_flags

from mirg_jax import cli
from mirg_jax.planning import machines

machines.prepare_environment()

_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe, a file of configs/.")
_MACHINE = flags.DEFINE_string(
    "machine", None, "KIND:TOPOLOGY, such as v5e:4x4, v5p:2x2x2, v6e:2x4 or h100:8.", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write the plan to.")
_SEARCH = flags.DEFINE_bool(
    "search", False, "Find the largest micro-batch, and the remat that recomputes least, that fit."
)
_REPEATED = flags.DEFINE_bool(
    "repeated",
    False,
    "Instead, the largest micro-batch of GRPO's update, beside that of the usual form, in which "
    "each completion has its own copy of the prompt.",
)
flags.mark_flag_as_required("config")


def main(_):
    from mirg_jax.planning import plans
    from mirg_jax.runs.settings import read

    machine = machines.Machine.parse(_MACHINE.value)
    settings = read(_CONFIG.value)
    if _REPEATED.value:
        from benchmarks import planned_prefix

        plan = planned_prefix.compare(settings, machine, print)
    elif _SEARCH.value:
        plan, _ = plans.search(settings, machine, print)
    else:
        plan = plans.plan(settings, machine, print)
    if _OUTPUT.value:
        path = pathlib.Path(_OUTPUT.value)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(plan, indent=1) + "\n")
    if not _REPEATED.value:
        plans.require_fit(plan)


if __name__ == "__main__":
    cli.run(main)
