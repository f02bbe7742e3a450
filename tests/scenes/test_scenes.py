"""The procedural scenes: what is drawn, what is asked, and the files."""

import collections
import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from mirg_jax.data.examples import read_examples
from mirg_jax.data.images import load_image, patchify
from mirg_jax.grounding.boxes import iou, is_valid
from mirg_jax.grounding.grammar import format_box
from mirg_jax.grounding.tasks import MIG_BENCH_TASKS, TRAINING_TASKS
from mirg_jax.mig_bench.benchmark import load_benchmark
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


def test_tasks_are_the_papers_seven_or_the_benchmarks_ten():
    assert sorted(scene_tasks.PUZZLES) == sorted(MIG_BENCH_TASKS)
    assert scene_tasks.TASKS["training"] == TRAINING_TASKS == tuple(scene_tasks.PUZZLES)[:7]
    for task, puzzle in puzzles(3):
        assert puzzle.task == task


def test_scenes_of_the_demo_are_those_of_its_figures(tmp_path):
    # Made before there were ten tasks: the demo's figures were measured on such scenes.
    scene_tasks.write_dataset(tmp_path, seed=0, sft=14, rl=7, evaluation=7)
    digest, files = hashlib.sha256(), sorted(tmp_path.rglob("*.*"))
    for path in files:
        digest.update(path.name.encode())
        is_image = path.suffix == ".png"
        digest.update(np.asarray(Image.open(path)).tobytes() if is_image else path.read_bytes())
    assert len(files) == 83
    assert digest.hexdigest() == "27d41bdc48f128054baf95b1965851533fee64f7439b4be6428e3d03aef68564"


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
        elif task in ("diff", "view_diff"):
            assert set(looks[1]) - set(looks[0]) == {answer}
        elif task == "correspondence":
            marked = next(t for t in puzzle.things[0] if format_box(t.box) in puzzle.question)
            alike = [look for look in looks[1] if look[1] == marked.shape]
            assert image == 2 and alike == [answer] and not set(looks[0]) & set(looks[1])
            assert answer[0] not in [colour for colour, _ in looks[0]]
        elif task == "multi_view":
            (marked,) = (t for t in puzzle.things[0] if format_box(t.box) in puzzle.question)
            assert marked.look == answer and looks[image - 1].count(answer) == 1
        elif task == "reasoning":
            axis = 0 if "colour" in puzzle.question else 1
            shown = looks[0][0][axis]
            assert [look for look in looks[image - 1] if look[axis] == shown] == [answer]
        else:
            assert looks[image - 1].count(answer) == 1


def test_views_move_all_things_together():
    mirrored = set()
    for seed in range(40):
        puzzle = scene_tasks.PUZZLES["multi_view"](np.random.default_rng(seed))
        assert len(puzzle.things) == 3 and len({len(things) for things in puzzle.things}) == 1
        before = {thing.look: np.array(thing.box) for thing in puzzle.things[0]}
        for things in puzzle.things[1:]:
            after = {thing.look: np.array(thing.box) for thing in things}
            zooms = [(after[k][2] - after[k][0]) / (before[k][2] - before[k][0]) for k in before]
            assert max(zooms) - min(zooms) <= 2 * drawing.STEP / 260
            if len(things) == 2:
                a, b = before
                was, now = (
                    (box[b] - box[a])[:2] + (box[b] - box[a])[2:] for box in (before, after)
                )
                mirrored.add(bool(was[0] * now[0] < 0))
                expected = np.array([-was[0] if was[0] * now[0] < 0 else was[0], was[1]])
                assert np.abs(now - expected * np.mean(zooms)).max() <= 6 * drawing.STEP
    assert mirrored == {False, True}


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


def test_ten_tasks_alternate_in_all_files(tmp_path):
    scene_tasks.write_dataset(tmp_path, seed=3, sft=20, rl=10, evaluation=20, tasks="all")
    for name, count in (("sft.json", 20), ("rl.json", 10), ("eval.json", 20)):
        examples, rejected = read_examples(tmp_path / name)
        assert not rejected
        assert collections.Counter(e.task for e in examples) == dict.fromkeys(
            MIG_BENCH_TASKS, count // 10
        )
        for example in examples:
            puzzle, _ = scene_tasks.find_puzzle(example.id, 3)
            (target,) = example.targets
            assert (target.image, target.box) == (puzzle.target[0], puzzle.answer.box)
    scored = load_benchmark(tmp_path / "eval.json")
    assert all(row.target_image for row in scored)


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
