"""How the predicted time of a step falls as chips are added, from the committed plans.

Strong scaling: the recipes as they are, whose batch stays the same. Weak scaling, of SFT: as many
rows a chip as on the smallest slice, so that a step of n times as many chips learns from n times as
many rows.
"""

import json
import pathlib
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from benchmarks import planned, side_by_side
from configs.machines import MACHINES

MODEL = "qwen2_vl_7b"
SLICES = {"v5e": ("v5e_16", "v5e_32", "v5e_64"), "v6e": ("v6e_8", "v6e_16", "v6e_32")}
COLOURS = {"v5e": "tab:blue", "v6e": "tab:orange"}
STYLES = {("sft", "strong"): "o-", ("sft", "weak"): "s--", ("grpo", "strong"): "^:"}


class Point(NamedTuple):
    """A slice of a curve.

    Attributes:
      chips: how many.
      seconds: a step's.
      efficiency: work a second and chip over that on the smallest slice.
      mfu: of the step.
    """

    chips: int
    seconds: float
    efficiency: float
    mfu: float


def curve(plans: dict[str, Any], stage: str, kind: str, way: str) -> list[Point]:
    """Returns the points of a curve, by rising number of chips.

    Args:
      plans: of `plans.json`, by recipe and machine.
      stage: "sft" or "grpo".
      kind: of the chips.
      way: "strong" or "weak".
    """
    found: list[Point] = []
    calls = 0
    for name in SLICES[kind]:
        machine = MACHINES[name]
        plan = plans.get(f"{stage}.py:{MODEL},{name}@{machine.plan}")
        if plan is None or "step" not in plan:
            continue
        seconds, mfu, work = plan["step"]["seconds"], plan["step"]["mfu"], 1.0
        if way == "weak":
            times = {program["name"]: program["time"] for program in plan["programs"]}
            calls = calls or times["gradients"]["calls"]
            grown = calls * times["gradients"]["seconds"] + times["update"]["step_seconds"]
            work = calls / times["gradients"]["calls"]
            mfu *= work * seconds / grown
            seconds = grown
        first = found[0] if found else Point(machine.devices, seconds, 1.0, mfu)
        # Of weak curves the first slice's work is 1, and others' is what their step has of it.
        efficiency = work * first.seconds * first.chips / (seconds * machine.devices)
        found.append(Point(machine.devices, seconds, efficiency, mfu))
    return found


def curves(plans: dict[str, Any]) -> dict[str, list[Point]]:
    """Returns all curves of more than one slice, by stage, kind of chip and way."""
    found = {
        f"{stage} {kind} {way}": curve(plans, stage, kind, way)
        for stage, way in STYLES
        for kind in SLICES
    }
    return {name: points for name, points in found.items() if len(points) > 1}


def _plot(found: dict[str, list[Point]], path: pathlib.Path) -> None:
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, points in found.items():
        stage, kind, way = name.split()
        style, colour = STYLES[stage, way], COLOURS[kind]
        chips = [point.chips for point in points]
        label = f"{stage.upper()}, {kind}, {way}"
        left.plot(chips, [p.seconds for p in points], style, color=colour, label=label)
        right.plot(chips, [p.efficiency for p in points], style, color=colour)
        if way == "strong":
            ideal = [points[0].seconds * chips[0] / n for n in chips]
            left.plot(chips, ideal, color="grey", linewidth=0.7)
    for axis in (left, right):
        axis.set(xscale="log", xlabel="chips", xticks=(8, 16, 32, 64), xticklabels=(8, 16, 32, 64))
        axis.xaxis.minorticks_off()
        axis.grid(alpha=0.3, which="both")
    left.set(yscale="log", ylabel="predicted seconds a step (grey: ideal)")
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter("{x:g}")
    right.set(ylim=(0, 1.1), ylabel="work a second and chip, relative")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    figure.savefig(path)


def run(path: pathlib.Path) -> None:
    """Writes the curves as JSON, and a plot with the same name.

    Args:
      path: the JSON file.
    """
    found = curves(json.loads(planned.PLANS.read_text())["plans"])
    for name, points in found.items():
        told = (f"{p.chips} chips {p.seconds:.3g} s ({p.efficiency:.0%})" for p in points)
        print(f"{name}: {', '.join(told)}")
    values = {name: [point._asdict() for point in points] for name, points in found.items()}
    side_by_side.write(path, {"case": "scaling", "model": MODEL, "curves": values})
    _plot(found, path.with_suffix(".svg"))
