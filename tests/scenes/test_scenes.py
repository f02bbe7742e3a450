import json

import numpy as np
import pytest

from mirg_jax.data.examples import read_examples
from mirg_jax.data.images import load_image, patchify
from mirg_jax.grounding.boxes import iou, is_valid
from mirg_jax.grounding.tasks import TRAINING_TASKS
from mirg_jax.scenes import drawing, scene_tasks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    scene_tasks.write_dataset(folder, seed=3, sft=70, rl=21, evaluation=21)
    return folder


def puzzles(count=20):
    for task, make in scene_tasks.PUZZLES.items():
        for i in range(count):
            yield task, make(np.random.default_rng(i))


def test_tasks_are_the_papers_seven():
    assert sorted(scene_tasks.PUZZLES) == sorted(TRAINING_TASKS)


def test_drawn_pixels_fill_the_box():
    # A change of picture where the thing is, and none outside its box.
    ground = drawing.Ground((0.8, 0.8, 0.8), (0.0, 0.0))
    for look in drawing.LOOKS:
        thing = drawing.Thing(*look, (200, 300, 600, 700))
        image = drawing.draw(np.random.default_rng(0), [thing], ground, noise=0.0)
        rows, columns = np.nonzero(np.abs(image.astype(int) - 204).max(-1) > 8)
        found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        expected = np.array(thing.box) * drawing.SIDE / 1000
        assert np.abs(found - expected).max() <= 1.5, look


def test_things_are_apart_and_numbered_from_left_to_right():
    for _, puzzle in puzzles():
        for things in puzzle.things:
            assert all(is_valid(thing.box) for thing in things)
            centres = [thing.box[0] + thing.box[2] for thing in things]
            assert centres == sorted(centres)
            if len(things) == 2:
                assert float(iou(np.array(things[0].box), np.array(things[1].box))) == 0


def test_every_question_has_one_answer():
    for task, puzzle in puzzles():
        looks = [[thing.look for thing in things] for things in puzzle.things]
        answer = puzzle.answer.look
        image = puzzle.target[0]
        if task == "group_grounding":
            assert sum(looks, []).count(answer) == 1
        elif task == "common_object":
            assert set.intersection(*map(set, looks)) == {answer}
        elif task == "diff":
            assert set(looks[1]) - set(looks[0]) == {answer}
        elif task == "reasoning":
            axis = 0 if "colour" in puzzle.question else 1
            shown = looks[0][0][axis]
            assert [look for look in looks[image - 1] if look[axis] == shown] == [answer]
        else:
            assert looks[image - 1].count(answer) == 1


def test_annotator_errs_outwards_only():
    rng = np.random.default_rng(0)
    for _ in range(200):
        x1, y1, x2, y2 = box = (200, 300, 600, 700)
        a1, b1, a2, b2 = drawing.push_out(rng, box, 0.1)
        assert x1 - 40 <= a1 <= x1 and y1 - 40 <= b1 <= y1
        assert x2 <= a2 <= x2 + 40 and y2 <= b2 <= y2 + 40
    assert drawing.push_out(rng, box, 0.0) == box


def test_formats_keep_image_and_box(folder):
    exact = {}
    for name, count in (("sft.json", 70), ("rl.json", 21), ("eval.json", 21)):
        exact[name], rejected = read_examples(folder / name)
        assert len(exact[name]) == count and not rejected
        assert {example.task for example in exact[name]} == set(TRAINING_TASKS)
        assert all(target.image for example in exact[name] for target in example.targets)
    questions = [{(e.question, e.targets) for e in examples} for examples in exact.values()]
    assert len(set.union(*questions)) == sum(map(len, questions))


def test_pictures_are_four_visual_tokens(folder):
    rows = json.loads((folder / "eval.json").read_text())
    for path in {path for row in rows for path in row["images"]}:
        assert patchify(load_image(folder, path), 56 * 56, 56 * 56).grid == (4, 4)


def test_same_seed_same_files(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        scene_tasks.write_dataset(tmp_path / name, seed=seed, sft=7, rl=7, evaluation=7)
    files = {path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*")}
    assert all(
        (tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files
    )
    assert (tmp_path / "a/eval.json").read_bytes() != (tmp_path / "c/eval.json").read_bytes()
