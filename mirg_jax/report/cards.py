"""Benchmark rows with systems' responses, and GRPO's groups, as examples to look through."""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mirg_jax.data.images import ImageRoot, Root
from mirg_jax.errors import DataError
from mirg_jax.grounding.boxes import grid_to_fraction
from mirg_jax.grounding.grammar import parse_response
from mirg_jax.mig_bench import scoring
from mirg_jax.mig_bench.benchmark import Row
from mirg_jax.report.browser import Answer, Card, View, task_title, task_titles

_RESULTS = ("hit", "miss", "wrong image", "bad format", "no response")
_RUNS = ("all hit", "they differ", "all miss")
_REWARDS = ("differ", "all equal")
_MOST_GROUPS = 400


class Responses(NamedTuple):
    """One system's responses, None where missing, and their scores on the same rows."""

    responses: Sequence[str | None]
    scores: scoring.Scores


# Rows ---------------------------------------------------------------------------------------------


def benchmark(
    rows: Sequence[Row],
    runs: Mapping[str, Responses],
    image_root: Root,
    featured: str = "",
) -> View:
    """Makes an example of each row that all runs have a score of, with an answer for each run.

    Args:
      featured: the run that the gallery shows; by default the last.
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
                truth=[(target or 1, row.answer)],
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
    return ", ".join([said[0], f"IoU {result.iou:.2f}", *said[1:]])


def _facet(run: str, several: bool) -> str:
    return f"Result of {run}" if several else "Result"


def _order(run: str, several: bool) -> str:
    return f"IoU of {run}" if several else "IoU"


def _results(response: str | None, result: scoring.RowScore) -> list[str]:
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
    words = [said[0], f"IoU {result.iou:.2f}"]
    if result.image:
        words.append(f"image {result.image}" + (f" (target {target})" if target else ""))
    named = result.image if result.image and 1 <= result.image <= count else None
    return Answer(
        name=name,
        mark=f"{'✓' if result.hit else '✗'} {result.iou:.2f}",
        said=", ".join([*words, *said[1:]]),
        good=result.hit,
        text=response,
        box=(named or target or 1, result.box) if result.box else None,
    )


# Groups -------------------------------------------------------------------------------------------


def groups(workdirs: Mapping[str, str | pathlib.Path]) -> View:
    """The groups that GRPO runs wrote down; runs without any are passed over.

    Of very many, some are shown, evenly spaced.

    Raises:
      DataError: a file of groups can't be read.
    """
    several, cards, found = len(workdirs) > 1, [], []
    for name, workdir in workdirs.items():
        files = sorted(pathlib.Path(workdir).glob("groups/step_*.jsonl"))
        root = _image_root(pathlib.Path(workdir)) if files else ""
        found += [(name, root, path, line) for path in files for line in _lines(path)]
    spacing = max(1, math.ceil(len(found) / _MOST_GROUPS))
    for name, root, path, line in found[::spacing]:
        try:
            cards.append(_group(name, root, int(path.stem.removeprefix("step_")), json.loads(line)))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise DataError(f"{path}: not a group of GRPO ({error!r}); delete the file") from error
    facets = {"Run": list(workdirs)} if several else {}
    named = [card.facets["Task"][0] for card in cards]
    facets |= {"Task": list(dict.fromkeys(named)), "Rewards": _REWARDS}
    orders = ["step", "mean reward", "spread of rewards"]
    return View("GRPO groups", cards, facets, orders, spread=("Task", "Rewards"))


def _lines(path: pathlib.Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _image_root(workdir: pathlib.Path) -> ImageRoot:
    path = workdir / "config.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))["data"]
        how = {name: bool(data.get(name)) for name in ("follow_links", "apply_exif")}
        return ImageRoot(pathlib.Path(data["image_root"]), **how)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: doesn't tell the image root ({error!r})") from error


def _group(run: str, root: Root, step: int, group: dict[str, Any]) -> Card:
    completions = sorted(group["completions"], key=lambda each: -each["reward"])
    rewards = [each["reward"] for each in completions]
    spread = rewards[0] - rewards[-1]
    title = task_title(group["task"])
    images = group["images"]
    truth = [(image or 1, grid_to_fraction(box)) for image, *box in group["targets"]]
    usual = truth[0][0] if truth else 1
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
        badge=f"rewards {rewards[-1]:.2f} to {rewards[0]:.2f}",
    )


def _completion(place: int, completion: dict[str, Any], num_images: int, usual: int) -> Answer:
    rest = dict(completion)
    text, reward = rest.pop("text"), float(rest.pop("reward"))
    advantage = rest.pop("advantage", None)
    words = [f"reward {reward:.2f}", *(f"{name} {value:.2f}" for name, value in rest.items())]
    if advantage is not None:
        words.insert(1, f"advantage {advantage:+.2f}")
    objects = parse_response(text, num_images).objects
    return Answer(
        name=f"#{place}",
        mark=f"{reward:.2f}",
        said=", ".join(words),
        good=None if not advantage else advantage > 0,
        text=text,
        box=(objects[0].image or usual, grid_to_fraction(objects[0].box)) if objects else None,
    )
