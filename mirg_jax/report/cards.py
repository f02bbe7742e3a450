"""Examples for the report: benchmark rows with systems' responses, and GRPO's groups."""

import json
import math
import pathlib
import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mirg_jax.data.images import ImageRoot, Root
from mirg_jax.data.json_rows import list_field
from mirg_jax.errors import DataError, shorten
from mirg_jax.files import lines, places
from mirg_jax.grounding.boxes import grid_to_fraction
from mirg_jax.grounding.grammar import parse_response
from mirg_jax.mig_bench import scoring
from mirg_jax.mig_bench.benchmark import Row
from mirg_jax.report.browser import Answer, Card, PlacedBox, View, task_title, task_titles
from mirg_jax.runs import metrics

_RESULTS = ("hit", "miss", "wrong image", "bad format", "no response")
_RUNS = ("all hit", "they differ", "all miss")
_REWARDS = ("differ", "all equal")
_MOST_GROUPS = 400  # in a report


class Responses(NamedTuple):
    """A system's responses and scores on the same rows; a missing response is None."""

    responses: Sequence[str | None]
    scores: scoring.Scores


# Rows ---------------------------------------------------------------------------------------------


def benchmark_view(
    rows: Sequence[Row],
    runs: Mapping[str, Responses],
    image_root: Root,
    featured: str = "",
) -> View:
    """Makes an example of each row that all runs have a score for, with an answer for each run.

    Args:
      rows: the benchmark's rows.
      runs: the runs by name.
      image_root: folder that image paths are relative to.
      featured: name of the run that the gallery shows; by default the last.
    """
    by_row = {name: {row.index: row for row in run.scores.rows} for name, run in runs.items()}
    scored = sorted(set.intersection(*map(set, by_row.values()))) if runs else []
    places = {row.index: place for place, row in enumerate(rows)}
    several = len(runs) > 1
    cards, featured = [], featured or next(reversed(runs), "")
    for index in scored:
        place = places[index]
        row = rows[place]
        results = {name: by_row[name][index] for name in runs}
        target = next(iter(results.values())).target_image
        said = {
            name: _results(runs[name].responses[place], result) for name, result in results.items()
        }
        hits = {result.hit for result in results.values()}
        title = task_title(row.task)
        cards.append(
            Card(
                title=f"Row {index}, {title}",
                question=row.question,
                root=image_root,
                images=row.images,
                truth=[PlacedBox(target or 1, row.answer)],
                answers=[
                    _answer(name, runs[name].responses[place], result, said[name], row)
                    for name, result in results.items()
                ],
                facets={"Task": (title,)}
                | {_facet(name, several): said[name] for name in runs}
                | {"Hits": (_RUNS[1 if len(hits) > 1 else 0 if True in hits else 2],)},
                numbers={"row": index}
                | {_order(name, several): result.iou for name, result in results.items()},
                badge=_badge(said[featured], results[featured]),
                drawn=list(runs).index(featured),
            )
        )
    facets = {"Task": task_titles([rows[places[index]].task for index in scored])}
    facets |= {_facet(name, several): _RESULTS for name in runs}
    if several:
        facets["Hits"] = _RUNS
    orders = ["row", *(_order(name, several) for name in runs)]
    spread = "Task", _facet(featured, several)
    return View("Examples", cards, facets, orders, differences=several, spread=spread)


def _badge(said: Sequence[str], result: scoring.RowScore) -> str:
    """Formats a result for the gallery."""
    outcome, *problems = said
    return ", ".join([outcome, f"IoU {result.iou:.2f}", *problems])


def _facet(run: str, several: bool) -> str:
    return f"Result of {run}" if several else "Result"


def _order(run: str, several: bool) -> str:
    return f"IoU of {run}" if several else "IoU"


def _results(response: str | None, result: scoring.RowScore) -> list[str]:
    """Returns "hit" or "miss", and what is wrong with the response."""
    judged = response is not None and result.format_ok is not None
    checks = {
        "hit": result.hit,
        "miss": not result.hit,
        "wrong image": judged and result.target_image not in (None, result.image),
        "bad format": judged and not result.format_ok,
        "no response": response is None,
    }
    return [name for name, holds in checks.items() if holds]


def _answer(
    name: str,
    response: str | None,
    result: scoring.RowScore,
    said: Sequence[str],
    row: Row,
) -> Answer:
    target, count = result.target_image, len(row.images)
    outcome, *problems = said
    words = [outcome, f"IoU {result.iou:.2f}"]
    if result.image:
        words.append(f"image {result.image}" + (f" (target {target})" if target else ""))
    named = result.image if result.image and 1 <= result.image <= count else None
    return Answer(
        name=name,
        mark=f"{'✓' if result.hit else '✗'} {result.iou:.2f}",
        said=", ".join([*words, *problems]),
        good=result.hit,
        text=response,
        box=PlacedBox(named or target or 1, result.box) if result.box else None,
    )


# Groups -------------------------------------------------------------------------------------------


def groups_view(workdirs: Mapping[str, str | pathlib.Path]) -> View:
    """Makes an example of each group that GRPO runs logged; of very many, some from every time.

    Args:
      workdirs: folders of training runs by name; those without groups are skipped.

    Raises:
      DataError: if a file of groups can't be read.
    """
    several, cards, found = len(workdirs) > 1, [], []
    for name, workdir in workdirs.items():
        files = sorted(pathlib.Path(workdir).glob("groups/step_*.jsonl"))
        root = _image_root(pathlib.Path(workdir)) if files else ""
        found += [(name, root, path, line) for path in files for line in _lines(path)]
    size = max(1, math.ceil(len(found) / _MOST_GROUPS))
    draw = random.Random(0)  # every k-th group might be the same one of each step
    chosen = [draw.choice(found[start : start + size]) for start in range(0, len(found), size)]
    for name, root, path, line in chosen:
        try:
            step, group = int(path.stem.removeprefix("step_")), json.loads(line)
            _check_group(group)
            cards.append(_group(name, root, step, group))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"{path}: not a group of GRPO ({error}); delete the file") from None
    facets = {"Run": list(workdirs)} if several else {}
    titles = dict.fromkeys(title for card in cards for title in card.facets["Task"])
    facets |= {"Task": list(titles), "Rewards": _REWARDS}
    orders = ["step", "mean reward", "spread of rewards"]
    return View("GRPO groups", cards, facets, orders, spread=("Task", "Rewards"))


def _check_group(group: Any) -> None:
    """Checks that the fields of a logged group are of the types that are shown.

    Raises:
      ValueError: if one isn't.
      LookupError, TypeError, AttributeError: if one is missing or in another place.
    """
    completions, images = group["completions"], list_field(group, "images")
    texts = {name: group[name] for name in ("id", "task", "question")}
    texts |= {f"image {n}": image for n, image in enumerate(images, start=1)}
    texts |= {f"text {n}": each["text"] for n, each in enumerate(completions, start=1)}
    numbers = {
        f"{name} of completion {n}": value
        for n, each in enumerate(completions, start=1)
        for name, value in each.items()
        if name != "text" and not (name == "advantage" and value is None)
    }
    for n, (image, *box) in enumerate(group["targets"], start=1):
        if image is not None and (type(image) is not int or not 1 <= image <= len(images)):
            raise ValueError(f"target {n} is in image {image!r} of {len(images)}")
        if len(box) != 4:
            raise ValueError(f"target {n} is no box")
        numbers |= {f"side {side} of target {n}": value for side, value in enumerate(box)}
    for kind, values, wanted in ((str, texts, "text"), ((int, float), numbers, "a number")):
        for name, value in values.items():
            odd = isinstance(value, bool) or not isinstance(value, kind)
            if odd or (isinstance(value, int) and not metrics.is_finite(value)):
                raise ValueError(f"{name} is {shorten(repr(value), 60)}, not {wanted}")


def _lines(path: pathlib.Path) -> list[str]:
    """Reads the lines of a file that are not blank, nor unfinished at its end."""
    try:
        found = [line.text.decode("utf-8") for line in lines.read(path)]
        return [line for line in found if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _image_root(workdir: pathlib.Path) -> ImageRoot:
    """Reads the image root from the config of a run."""
    path = workdir / "config.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))["data"]
        how = {name: bool(data.get(name)) for name in ("follow_links", "apply_exif")}
        return ImageRoot(places.of(data["image_root"]), **how)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path}: doesn't tell the image root ({shorten(str(error), 200)}); restore it from a "
            "copy of the run"
        ) from None


def _group(run: str, root: Root, step: int, group: dict[str, Any]) -> Card:
    completions = sorted(group["completions"], key=lambda each: -each["reward"])
    rewards = [each["reward"] for each in completions]
    best, worst = rewards[0], rewards[-1]
    spread = best - worst
    title = task_title(group["task"])
    images = group["images"]
    truth = [PlacedBox(image or 1, grid_to_fraction(box)) for image, *box in group["targets"]]
    usual = truth[0].image if truth else 1
    return Card(
        title=f"Step {step}, {title}, {group['id']}",
        question=group["question"],
        root=root,
        images=images,
        truth=truth,
        answers=[
            _completion(place, each, len(images), usual)
            for place, each in enumerate(completions, start=1)
        ],
        facets={"Run": (run,), "Task": (title,), "Rewards": (_REWARDS[spread == 0],)},
        numbers={
            "step": step,
            "mean reward": math.fsum(rewards) / len(rewards),
            "spread of rewards": spread,
        },
        badge=f"rewards {worst:.2f} to {best:.2f}",
    )


def _completion(place: int, completion: dict[str, Any], num_images: int, usual: int) -> Answer:
    rest = dict(completion)
    text, reward = rest.pop("text"), float(rest.pop("reward"))
    advantage = rest.pop("advantage", None)
    words = [f"reward {reward:.2f}", *(f"{name} {value:.2f}" for name, value in rest.items())]
    if advantage is not None:
        words.insert(1, f"advantage {advantage:+.2f}")
    box = None
    if objects := parse_response(text, num_images).objects:
        first = objects[0]
        box = PlacedBox(first.image or usual, grid_to_fraction(first.box))
    return Answer(
        name=f"#{place}",
        mark=f"{reward:.2f}",
        said=", ".join(words),
        good=None if not advantage else advantage > 0,
        text=text,
        box=box,
    )
