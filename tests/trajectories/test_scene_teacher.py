"""The scenes' teacher through the whole pipeline: what `make demo` trains on."""

import collections
import json

import numpy as np
import pytest
from conftest import page_data
from ml_collections import ConfigDict

from configs import trajectories
from mirg_jax.data.examples import read_examples
from mirg_jax.errors import DataError
from mirg_jax.grounding.boxes import iou
from mirg_jax.grounding.grammar import GroundedObject, format_answer, format_object, parse_response
from mirg_jax.grounding.tasks import TRAINING_TASKS
from mirg_jax.scenes import scene_tasks
from mirg_jax.scenes.drawing import STEP
from mirg_jax.trajectories import build, outputs, settings


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    scene_tasks.write_dataset(folder, seed=3, sft=70, rl=0, evaluation=0)

    def make(name, error):
        config = trajectories.scenes()
        config.scenes.update(seed=3, error=error)
        result = build.build(
            settings.read(config),
            source=str(folder / "sft.json"),
            image_root=str(folder),
            output_dir=folder / name,
            progress=False,
        )
        assert not result.stopped
        assert (result.summary["accepted"], result.summary["questions"]) == (70, 70)
        return folder / name

    return {"annotated": make("annotated", 0.3), "exact": make("exact", 0.0)}


def test_trajectories_are_those_of_the_scenes(made):
    # Written by hand from what the puzzle knows: the things in order, then the look-up.
    examples, rejected = read_examples(made["exact"] / "grounded.jsonl")
    assert not rejected
    assert collections.Counter(e.task for e in examples) == dict.fromkeys(TRAINING_TASKS, 10)
    for example in examples:
        puzzle, _ = scene_tasks.find_puzzle(example.id, 3)
        things = [
            GroundedObject(thing.box, n, m, thing.name)
            for n, shown in enumerate(puzzle.things, start=1)
            for m, thing in enumerate(shown, start=1)
        ]
        n, m = puzzle.target
        answer = format_answer([GroundedObject(puzzle.answer.box, n, m)])
        listing = "".join(map(format_object, things))
        expected = f"<think>{listing} {puzzle.look_up}</think><answer>{answer}</answer>"
        assert example.response == expected
        assert example.question == puzzle.question


def test_trajectories_parse_and_agree_with_the_truth(made):
    # The worst case is the smallest thing, each side moved out by the most and rounded outwards.
    furthest = 1 + 2 * 0.3 + STEP / 260
    for name, worst in (("annotated", furthest**-2), ("exact", 1.0)):
        examples, _ = read_examples(made[name] / "grounded.jsonl")
        overlaps = []
        for example in examples:
            response = parse_response(example.response, len(example.images))
            assert response.format_ok and not response.problems
            (found,), (target,) = response.objects, example.targets
            assert found.image == target.image
            overlaps.append(float(iou(np.array(found.box), np.array(target.box))))
            assert found in [GroundedObject(m.box, m.image, m.number) for m in response.mentions]
        assert min(overlaps) >= worst
    assert len(set(overlaps)) == 1


def test_variants_are_of_the_same_questions(made):
    read = {}
    for name in outputs.VARIANTS:
        read[name], rejected = read_examples(made["annotated"] / f"{name}.jsonl")
        assert len(read[name]) == 70 and not rejected
    assert len({tuple(e.id for e in examples) for examples in read.values()}) == 1
    for grounded, reasoning, caption, answer in zip(*read.values(), strict=True):
        assert grounded.targets == reasoning.targets == caption.targets == answer.targets
        assert answer.response is None
        target = answer.targets[0]
        said = parse_response(reasoning.response, len(answer.images))
        assert said.format_ok and not said.mentions and "bbox_id" not in reasoning.response
        assert (said.objects[0].image, said.objects[0].box) == (target.image, target.box)
        said = parse_response(caption.response, len(answer.images))
        assert said.thinking is None
        (obj,) = said.objects
        assert (obj.image, obj.box, obj.label) == (target.image, target.box, target.label)


def test_page_shows_every_box(made):
    (view,) = page_data(made["annotated"] / "report.html")["views"]
    assert len(view["cards"]) >= 30
    examples = {e.id: e for e in read_examples(made["annotated"] / "grounded.jsonl")[0]}
    for card in view["cards"]:
        name = next(name for name in examples if f"{name}: accepted" in card["title"])
        assert len(card["truth"]) == 1
        mentions = parse_response(examples[name].response, 3).mentions
        answer = card["answers"][0]
        drawn = [(answer["names"][which], *box) for which, *box in answer["places"]]
        assert len(drawn) == len(mentions)
        for (label, image, x, y, width, height), obj in zip(drawn, mentions, strict=True):
            assert (label, image) == (obj.label, obj.image)
            sides = [1000 * side for side in (x, y, x + width, y + height)]
            assert sides == pytest.approx(obj.box)


def test_summary_counts_everything(made):
    summary = json.loads((made["annotated"] / "summary.json").read_text())
    assert {task: row["accepted"] for task, row in summary["tasks"].items()} == dict.fromkeys(
        TRAINING_TASKS, 10
    )
    assert all(row["answers"] == 70 for row in summary["stages"].values())
    assert (made["annotated"] / "rejected.jsonl").read_text() == ""


def test_the_benchmarks_other_tasks_are_annotated_too(tmp_path):
    scene_tasks.write_dataset(tmp_path, seed=4, sft=20, rl=0, evaluation=0, tasks="all")
    config = trajectories.scenes()
    config.scenes.update(seed=4, error=0.0)
    config.select.weights = ConfigDict(dict.fromkeys(scene_tasks.TASKS["all"], 1.0))
    build.build(
        settings.read(config),
        source=str(tmp_path / "sft.json"),
        image_root=str(tmp_path),
        output_dir=tmp_path / "made",
        progress=False,
    )
    examples, rejected = read_examples(tmp_path / "made/grounded.jsonl")
    assert len(examples) == 20 and not rejected
    for example in examples:
        (found,) = parse_response(example.response, len(example.images)).objects
        (target,) = example.targets
        assert (found.image, found.box) == (target.image, target.box)


@pytest.mark.parametrize("name", ["real_photo_7", "region_test_00001", "eval_00001"])
def test_other_questions_have_no_answer(name):
    with pytest.raises(DataError, match="not the id of a procedural scene"):
        scene_tasks.find_puzzle(name, 0)
