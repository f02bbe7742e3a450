"""The published plans: `benchmarks/results/plans.json`, and their table in `docs/machines.md`."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from mirg_jax.planning.machines import Machine

REPOSITORY = pathlib.Path(__file__).parent.parent
PLANS = REPOSITORY / "benchmarks/results/plans.json"
PAGE = REPOSITORY / "docs/machines.md"

Plan = Mapping[str, Any]  # from `mirg_jax.planning.plans.plan`

_HEAD = (
    "| recipe | machine | GiB a device | free | a step, s | MFU | tokens/s a device | hours | "
    "chip-hours | dearest |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
)
_SHOWN = ("sample", "gradients")  # programs whose memory is told
_KINDS = {
    "products": "matrix products",
    "kernels": "attention kernels",
    "collectives_open": "collectives in the open",
    "copies_open": "copies in the open",
}
_LEAST = 0.05  # share of a step from which a kind is told


def row(name: str, plan: Plan) -> str:
    """Returns a plan's row of the table.

    Args:
      name: RECIPE@MACHINE.
      plan: the plan.
    """
    recipe, machine = name.split("@")
    programs = {program["name"]: program for program in plan["programs"]}
    sizes = (f"{n} {programs[n]['total'] / 2**30:.1f}" for n in _SHOWN if n in programs)
    free = min(program["free_fraction"] for program in plan["programs"])
    chips = Machine.parse(machine).chips
    cells = [f"`{recipe}`", f"`{machine}`", ", ".join(sizes), f"{free:.0%}", *_times(plan, chips)]
    return f"| {' | '.join(cells)} |"


def _times(plan: Plan, chips: int) -> list[str]:
    if "step" not in plan:
        return ["–"] * 6
    step, hours = plan["step"], plan["run"]["hours"]
    seconds, dearest = f"≥ {step['seconds']:.1f}", "a roofline"
    if "least" in step:
        seconds = f"{step['seconds']:.1f} ({step['least']:.1f}–{step['most']:.1f})"
        shares = {told: step["kinds"][kind] / step["seconds"] for kind, told in _KINDS.items()}
        told = (f"{share:.0%} {kind}" for kind, share in shares.items() if share >= _LEAST)
        dearest = ", ".join(told)
    rate = f"{step['tokens_per_second_per_device']:,.0f}"
    return [seconds, f"{step['mfu']:.0%}", rate, f"{hours:.2f}", f"{hours * chips:.1f}", dearest]


def table(plans: Mapping[str, Plan]) -> str:
    """Returns the table of all plans, in Markdown.

    Args:
      plans: by RECIPE@MACHINE.
    """
    return _HEAD + "".join(row(name, plans[name]) + "\n" for name in sorted(plans))


def publish(name: str, plan: Plan) -> None:
    """Puts a plan into the file and the page.

    Args:
      name: RECIPE@MACHINE.
      plan: the plan.
    """
    found = json.loads(PLANS.read_text())
    found["plans"] = dict(sorted({**found["plans"], name: plan}.items()))
    PLANS.write_text(json.dumps(found, indent=1) + "\n")
    text = PAGE.read_text()
    start = text.index(_HEAD)
    end = text.index("\n\n", start) + 1
    PAGE.write_text(text[:start] + table(found["plans"]) + text[end:])
