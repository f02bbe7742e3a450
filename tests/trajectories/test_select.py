"""Ingestion and selection of questions: every row accounted for, no images used twice."""

import collections
import dataclasses
import gzip
import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mirg_jax.data.examples import read_examples
from mirg_jax.errors import CheckpointError, ConfigError, DataError, reason_kind
from mirg_jax.grounding.tasks import MGROUNDING_FOLDERS, TRAINING_TASKS
from mirg_jax.trajectories.ingest import ingest
from mirg_jax.trajectories.select import apportion, prepare_questions, select_questions
from mirg_jax.trajectories.settings import SelectionSettings

EQUAL = dict.fromkeys(TRAINING_TASKS, 1.0)
BOX = "<|box_start|>(10,20),(300,400)<|box_end|>"


def turns(*pairs):
    return [
        {"from": who, "value": value}
        for pair in pairs
        for who, value in zip(("human", "gpt"), pair, strict=True)
    ]


def row(folder, n, *pairs, prefix="./", **changes):
    images = [f"{prefix}MGrounding-630k/{folder}/images/{n:06d}_{i}.jpg" for i in (1, 2)]
    pairs = pairs or (("<image>\n<image>\nLocate it in the second image.", BOX),)
    return {"id": n, "images": images, "conversations": turns(*pairs), "type": "x"} | changes


def publish(root):
    """Writes a data set with the quirks of the published one; returns its rows by file."""
    files = {}
    for folder in MGROUNDING_FOLDERS:
        # Ids count from 0 in every file.
        files[f"{folder}/train.json"] = [row(folder, n) for n in range(8)]
    group = files["Group_Grounding/train.json"]
    question, answer = "Where is the dog?", f"It's in the second image. {BOX}"
    group += [
        row("Group_Grounding", 10, (question, answer), ("And the cat?", f"In image 1: {BOX}")),
        row("Group_Grounding", 11, ("Where?", "It's in the first image. " + BOX), ("?", "A cat.")),
        row("Group_Grounding", 12, (question, BOX.replace("(300", "(1300"))),
        row("Group_Grounding", 13, (question, BOX.replace("(300", "(3"))),
        row("Group_Grounding", 14, (f"What is at {BOX}?", "A dog."), type="gg_reg_train"),
        row("Group_Grounding", 15, prefix="/home/someone/data/"),
        row("Group_Grounding", 0),  # a row that is there already
        row("Group_Grounding", 16, conversations=[]),
        "not a row",
    ]
    files["Group_Grounding/gg_reg_120k.json"] = [row("Group_Grounding", 20)]
    for name, rows in files.items():
        path = root / "MGrounding-630k" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows))
        for item in rows:
            for image in item["images"] if isinstance(item, dict) else ():
                file = root / image[image.index("MGrounding") :]
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (hash(image) % 256, 0, 0)).save(file)
    return files


def test_every_row_of_a_published_folder_is_accounted_for(tmp_path):
    files = publish(tmp_path)
    (tmp_path / "MGrounding-630k/.cache").mkdir()
    (tmp_path / "MGrounding-630k/.cache/other.json").write_text("{")
    found = ingest(tmp_path)
    assert {file.name for file in found.files} == {f"MGrounding-630k/{name}" for name in files}
    for file in found.files:
        rows = files[file.name.removeprefix("MGrounding-630k/")]
        prefix = file.name + " row "
        kept = [q for q in found.questions if q.source.startswith(prefix)]
        lost = [r for r in found.left_out if r.source.startswith(prefix)]
        assert all(r.reason for r in lost)
        # Every row is in one list or the other, by its number.
        numbers = {int(item.source.rsplit(" ", 1)[1]) for item in kept + lost}
        assert numbers == set(range(len(rows)))
        assert file.rows == len(rows)
        assert file.questions == len(kept) + len(lost)
        assert file.questions_left_out == len(lost)
        assert file.rows_left_out == len(rows) - len({item.source for item in kept})

    assert len({q.id for q in found.questions}) == len(found.questions)
    assert {q.task for q in found.questions} == set(TRAINING_TASKS)
    by_source = collections.defaultdict(list)
    for question in found.questions:
        by_source[question.source].append(question)
    first, second = by_source["MGrounding-630k/Group_Grounding/train.json row 8"]
    assert (first.targets[0].image, second.targets[0].image) == (2, 1)
    (elsewhere,) = by_source["MGrounding-630k/Group_Grounding/train.json row 13"]
    assert elsewhere.images[0].startswith("MGrounding-630k/Group_Grounding/")

    reasons = collections.Counter(reason_kind(r.reason) for r in found.left_out)
    assert sum("captioning" in reason for reason in reasons.elements()) == 2
    assert sum("not a box on the grid" in reason for reason in reasons.elements()) == 2
    assert sum("the same question as" in reason for reason in reasons.elements()) == 1
    assert len(found.left_out) == 8


def test_questions_have_no_thoughts_of_the_data(tmp_path):
    said = f"<think>At first sight {BOX}.</think><answer>In image 2: {BOX}</answer>"
    path = tmp_path / "chats.json"
    path.write_text(json.dumps([row("Difference", 1, ("Where is the dog?", said))]))
    assert read_examples(path)[0][0].response == said
    (question,) = ingest(path).questions
    assert question.response is None and question.targets[0].image == 2


def test_files_are_named_by_what_tells_them_apart(tmp_path):
    publish(tmp_path)
    paths = [
        tmp_path / f"MGrounding-630k/{name}/train.json" for name in ("Difference", "Free-Form")
    ]
    found = ingest(paths)
    assert [file.name for file in found.files] == ["Difference/train.json", "Free-Form/train.json"]
    assert len(found.questions) == 16 == len({question.id for question in found.questions})
    assert found.questions[8].source == "Free-Form/train.json row 0"
    (alone,) = ingest(str(paths[0])).files
    assert alone.name == "train.json"


def test_real_photos_are_accounted_for(shared, tmp_path):
    photos = shared("real_photos")
    rows = json.loads((photos / "train.json").read_text())
    found = ingest(photos / "train.json")
    (file,) = found.files
    assert file.rows == len(rows) == 1121
    asked = sum(len(row["conversations"]) // 2 for row in rows)
    assert file.questions == asked == len(found.questions) + len(found.left_out)

    settings = SelectionSettings(280, 140, EQUAL, seed=1, exclude=str(photos / "eval.json"))
    chosen = prepare_questions(photos / "train.json", photos, tmp_path, settings)
    again = prepare_questions(photos / "train.json", photos, tmp_path, settings)
    assert [each.id for each in again] == [each.id for each in chosen]
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    parts = [manifest[name] for name in ("sft", "rl", "not_drawn", "left_out")]
    assert sum(parts) == asked and manifest["sft"] == 280 and manifest["rl"] == 140
    assert sum(manifest["reasons"].values()) == manifest["left_out"]
    assert set(manifest["by_task"]["sft"].values()) == {40}


def test_selection_is_balanced_disjoint_and_seeded(tmp_path):
    publish(tmp_path)
    questions = ingest(tmp_path).questions
    selected = select_questions(questions, tmp_path, SelectionSettings(28, 21, EQUAL, seed=3))
    for drawn, share in ((selected.sft, 4), (selected.rl, 3)):
        counts = collections.Counter(question.task for question in drawn)
        assert counts == dict.fromkeys(TRAINING_TASKS, share)
        head = collections.Counter(question.task for question in drawn[:7])
        assert set(head.values()) == {1}
    shown = [frozenset(question.images) for question in selected.sft + selected.rl]
    assert len(set(shown)) == len(shown)
    again = select_questions(questions, tmp_path, SelectionSettings(28, 21, EQUAL, seed=3))
    other = select_questions(questions, tmp_path, SelectionSettings(28, 21, EQUAL, seed=4))
    assert again == selected != other

    weights = EQUAL | {"diff": 3.0, "region": 0.0}
    selected = select_questions(questions, tmp_path, SelectionSettings(16, 0, weights, seed=3))
    counts = collections.Counter(question.task for question in selected.sft)
    assert counts["diff"] == 6 and counts["reasoning"] == 2 and not counts["region"]
    assert sum("'region' is not one of" in row.reason for row in selected.left_out) == 8


def test_other_tasks_give_more_where_one_has_too_few(tmp_path):
    publish(tmp_path)
    questions = ingest(tmp_path).questions
    for n in range(4):
        (tmp_path / f"MGrounding-630k/Difference/images/{n:06d}_2.jpg").unlink()
    selected = select_questions(questions, tmp_path, SelectionSettings(28, 14, EQUAL, seed=0))
    assert (len(selected.sft), len(selected.rl)) == (28, 14)
    both = collections.Counter(question.task for question in selected.sft + selected.rl)
    assert both["diff"] == 4 and {both[t] for t in TRAINING_TASKS} <= {4, 6, 7}
    assert sum("no such file" in row.reason for row in selected.left_out) == 4
    selected = select_questions(questions, tmp_path, SelectionSettings(1000, 700, EQUAL, seed=0))
    assert len(selected.sft) == pytest.approx(len(selected.rl) * 10 / 7, abs=1)


def test_nothing_of_a_benchmark_is_used(tmp_path):
    publish(tmp_path)
    questions = ingest(tmp_path).questions
    by_name, copied = questions[0].images[1], questions[9].images[0]
    bench = tmp_path / "MIG-Bench"
    bench.mkdir()
    other = "MIG-Bench/images/other.png"
    (bench / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / other)
    (tmp_path / copied).write_bytes((tmp_path / other).read_bytes())
    # A short number as a name is compared together with the folder's name.
    rows = [
        {"task": "diff", "images": [path], "question": "?", "answer": [0.1, 0.1, 0.5, 0.5]}
        for path in (f"./MIG-Bench/images/{by_name.split('/')[-1]}", f"./{other}")
    ]
    rows[0]["answer"] = [0.5, 0.1, 0.1, 0.5]  # inverted, as some are; its images are excluded too
    (tmp_path / "bench.json").write_text(json.dumps(rows))
    Image.new("RGB", (3, 3)).save(tmp_path / "MIG-Bench" / rows[0]["images"][0][12:])
    settings = SelectionSettings(1000, 0, EQUAL, 0, str(tmp_path / "bench.json"), str(tmp_path))
    selected = select_questions(questions, tmp_path, settings)
    used = {path for question in selected.sft for path in question.images}
    assert copied not in used
    assert by_name.split("/")[-1] not in {path.split("/")[-1] for path in used}
    assert any("copy of one of the benchmark's" in row.reason for row in selected.left_out)
    assert any("is one of the benchmark's" in row.reason for row in selected.left_out)


def test_nothing_of_mig_bench_is_used(shared, tmp_path):
    publish(tmp_path)
    rows = json.loads(shared("mig_bench", "MIG_data.json").read_text())
    taken = {tuple(row["images"]) for row in rows[::40]}
    paths = [
        path.replace("MIG-Bench", "MGrounding-630k") for row in rows[::40] for path in row["images"]
    ]
    questions = ingest(tmp_path).questions
    shown = [
        dataclasses.replace(questions[0], id=path, images=(path, questions[0].images[0]))
        for path in paths
    ]
    assert len(taken) > 100
    settings = SelectionSettings(
        1000, 0, EQUAL, 0, exclude=str(shared("mig_bench", "MIG_data.json"))
    )
    selected = select_questions(shown + questions, tmp_path, settings)
    assert not {question.id for question in selected.sft} & set(paths)
    assert sum("is one of the benchmark's" in row.reason for row in selected.left_out) == len(paths)


def test_a_selection_is_kept_and_not_replaced(tmp_path):
    publish(tmp_path)
    out = tmp_path / "out"
    settings = SelectionSettings(14, 7, EQUAL, seed=3)
    first = prepare_questions(tmp_path / "MGrounding-630k", tmp_path, out, settings)
    written = {path.name: path.read_bytes() for path in out.iterdir()}
    assert prepare_questions(tmp_path / "MGrounding-630k", tmp_path, out, settings) == first
    prepare_questions(tmp_path / "MGrounding-630k", tmp_path, tmp_path / "again", settings)
    assert written == {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}
    rl, rejected = read_examples(out / "rl.jsonl")
    assert len(rl) == 7 and not rejected and all(question.response is None for question in rl)

    with pytest.raises(ConfigError, match="chosen otherwise"):
        prepare_questions(
            tmp_path / "MGrounding-630k", tmp_path, out, SelectionSettings(14, 7, EQUAL, seed=4)
        )
    (tmp_path / "MGrounding-630k/Difference/train.json").write_text(json.dumps([row("x", 1)]))
    with pytest.raises(ConfigError, match="other files"):
        prepare_questions(tmp_path / "MGrounding-630k", tmp_path, out, settings)


@pytest.mark.parametrize(
    "text", ['{"how": {', "[]", "7", '{"sft": "14"}', '{"sft": 14, "how": 3}', "[" * 100_000,
             '{"sft": 14, "how": {}, "files": [{}]}', '{"sft": 14, "how": {}, "files": 1}'],
)  # fmt: skip
def test_a_damaged_record_of_a_selection_is_named(text, tmp_path):
    publish(tmp_path)
    out, source = tmp_path / "out", tmp_path / "MGrounding-630k"
    settings = SelectionSettings(14, 7, EQUAL, seed=3)
    first = prepare_questions(source, tmp_path, out, settings)
    (out / "manifest.json").write_text(text)
    with pytest.raises(
        CheckpointError, match="manifest.json: not a record of a selection"
    ) as error:
        prepare_questions(source, tmp_path, out, settings)
    assert f"delete {out} to choose" in str(error.value) and "\n" not in str(error.value)
    shutil.rmtree(out)
    assert prepare_questions(source, tmp_path, out, settings) == first


def test_a_selection_of_which_questions_are_lost_is_not_used(tmp_path):
    publish(tmp_path)
    out, source = tmp_path / "out", tmp_path / "MGrounding-630k"
    settings = SelectionSettings(14, 7, EQUAL, seed=3)
    prepare_questions(source, tmp_path, out, settings)
    path = out / "questions.jsonl"
    rows = path.read_text().splitlines(keepends=True)
    for text, reason in (
        ("".join(rows[:9]), "has 9 questions that can be read, and 14 were chosen"),
        ("".join(rows[:9]) + '{"id": "x"}\n' + "".join(rows[10:]), "questions.jsonl row 9: "),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=reason):
            prepare_questions(source, tmp_path, out, settings)


def test_a_selection_that_was_made_without_some_images_says_so(tmp_path, capsys):
    publish(tmp_path)
    image = tmp_path / "MGrounding-630k/Group_Grounding/images/000003_1.jpg"
    content, folder = image.read_bytes(), tmp_path / "selection"
    image.unlink()
    what = tmp_path / "MGrounding-630k", tmp_path, folder, SelectionSettings(0, 0, EQUAL, 0)
    chosen = prepare_questions(*what)
    assert not capsys.readouterr().err
    image.write_bytes(content)
    assert len(prepare_questions(*what)) == len(chosen)
    said = capsys.readouterr().err
    assert said.count("the images of 1 questions were not there") == 1 and str(folder) in said
    shutil.rmtree(folder)
    assert len(prepare_questions(*what)) == len(prepare_questions(*what)) == len(chosen) + 1
    assert not capsys.readouterr().err


def test_lines_are_read_where_a_folder_has_no_lists(tmp_path):
    lines = tmp_path / "train.jsonl"
    lines.write_text("".join(json.dumps(row("Difference", n)) + "\n" for n in range(3)))
    assert len(ingest(tmp_path).questions) == 3
    (tmp_path / "train.json").write_text(json.dumps([row("Difference", 9)]))
    assert [file.name for file in ingest(tmp_path).files] == ["train.json"]


@pytest.mark.parametrize("name", ["train.json.gz", "train.jsonl.gz"])
def test_packed_files_are_found(tmp_path, name):
    lines = "".join(json.dumps(row("Difference", n)) + "\n" for n in range(3))
    (tmp_path / name).write_bytes(gzip.compress(lines.encode()))
    found = ingest(tmp_path)
    assert len(found.questions) == 3 and [file.name for file in found.files] == [name]


def test_unusable_input(tmp_path):
    with pytest.raises(DataError, match="no .json or .jsonl file"):
        ingest(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        ingest(tmp_path / "missing.json")


def test_without_a_count_all_come_in_order(tmp_path):
    publish(tmp_path)
    questions = ingest(tmp_path).questions
    selected = select_questions(questions, tmp_path, SelectionSettings(0, 0, EQUAL, 0))
    assert selected == (questions, [], [])


@given(
    st.integers(0, 500),
    st.lists(st.tuples(st.floats(0.01, 10), st.integers(0, 200)), min_size=1, max_size=7),
)
def test_apportion_gives_all_there_is_and_no_more(total, tasks):
    weights = {str(n): weight for n, (weight, _) in enumerate(tasks)}
    most = {str(n): count for n, (_, count) in enumerate(tasks)}
    shares = apportion(total, weights, most)
    assert sum(shares.values()) == min(total, sum(most.values()))
    assert all(0 <= shares[name] <= most[name] for name in shares)
    if all(total * w / sum(weights.values()) <= most[n] - 1 for n, w in weights.items()):
        assert all(
            abs(shares[n] - total * w / sum(weights.values())) <= 1 for n, w in weights.items()
        )
