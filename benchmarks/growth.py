"""Time of a GRPO update as a function of the completions per group and the images per prompt.

The shared and the repeated form are measured, and each is compared with the time it would take if
time grew in proportion to counted operations. Images are 336×336, so that all sizes can be measured
in a few minutes.
"""

import json
import pathlib
from collections.abc import Iterator

import jax
from matplotlib.figure import Figure

from benchmarks import side_by_side
from benchmarks.group import SIZE, Size, Work, make_task
from benchmarks.shared_prefix import temporary_bytes, updates
from benchmarks.side_by_side import Variant

COMPLETIONS, IMAGES = (2, 4, 8, 16), (1, 2, 4, 6)
MIDDLE = SIZE._replace(side=24)
FORMS = {"shared": "tab:blue", "repeated": "tab:orange"}


def _sizes(size: Size, completions, images) -> list[Size]:
    """Returns the sizes to measure: one of the two numbers varies, the other is that of `size`."""
    sizes = [size._replace(group=n) for n in completions]
    sizes += [size._replace(images=n) for n in images]
    return list(dict.fromkeys(sizes))


def growth(base: str, sizes: list[Size]) -> Iterator[Variant]:
    """Yields the update of each size."""
    for size in sizes:
        task = make_task(base, size)
        compiled, run = updates(task)
        work = Work(task)
        yield Variant(
            str(size),
            {form: lambda way=way: jax.block_until_ready(way()) for form, way in run.items()},
            size._asdict() | work.facts() | {"temporary_bytes": temporary_bytes(compiled)},
            {form: work.update()[form] for form in run},
        )


def _plot(variants: list[dict], size: Size, path: pathlib.Path) -> None:
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (what, label, other) in zip(
        axes,
        (("group", "completions a prompt", "images"), ("images", "images a prompt", "group")),
        strict=True,
    ):
        line = [v for v in variants if v[other] == getattr(size, other)]
        line.sort(key=lambda v: v[what])
        x = [v[what] for v in line]
        for form, colour in FORMS.items():
            seconds = [v["seconds"][form] for v in line]
            middle = [s["median"] for s in seconds]
            spread = [[s["median"] - s["min"] for s in seconds]]
            spread.append([s["max"] - s["median"] for s in seconds])
            axis.errorbar(x, middle, spread, fmt="o-", color=colour, capsize=3, label=form)
            counted = [v["counted_gflops"][form] for v in line]
            ideal = [middle[0] * flops / counted[0] for flops in counted]
            axis.plot(x, ideal, "--", color=colour, label=f"{form}, as its counted work grows")
        axis.set(xscale="log", yscale="log", xlabel=label, xticks=x, xticklabels=x)
        axis.xaxis.minorticks_off()
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}")
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("seconds an update")
    lines, labels = axes[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside upper center", ncols=4)
    figure.savefig(path)


def run(
    base: str,
    repeats: int,
    path: pathlib.Path,
    *,
    size: Size = MIDDLE,
    completions: tuple[int, ...] = COMPLETIONS,
    images: tuple[int, ...] = IMAGES,
) -> None:
    """Measures all sizes; writes a JSON file, and a plot with the same name."""
    sizes = _sizes(size, completions, images)
    # Programs are compiled in advance, so that one warm-up run is enough.
    side_by_side.run("growth", growth(base, sizes), repeats, path, warm_ups=1)
    variants = list(json.loads(path.read_text())["variants"].values())
    _plot(variants, size, path.with_suffix(".svg"))
