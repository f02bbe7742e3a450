"""Data sets as users bring them: other forms of the same rows, and those without a usable row."""

import json

import pytest
from conftest import train
from PIL import Image

from mirg_jax.data.examples import key_of, read_examples
from mirg_jax.errors import ConfigError, DataError, UserError
from mirg_jax.runs import devices
from mirg_jax.runs.settings import read
from mirg_jax.training import resumed, start


@pytest.fixture
def refused(recipe, tmp_path):
    """Trains with a model that could only be downloaded; the data are refused before."""

    def refused(kind="sft", **changes) -> str:
        changes = {"model.path": "no-such-owner/no-such-model"} | changes
        with pytest.raises(UserError) as error:
            train(recipe(kind, **changes), tmp_path / "run")
        assert isinstance(error.value, DataError) and "\n" not in str(error.value)
        assert not (tmp_path / "run").exists()
        return str(error.value)

    return refused


def test_rows_are_taken_by_their_ratings_and_asked_for_a_form(recipe, tmp_path, capsys):
    ratings, plain = tmp_path / "ratings.jsonl", recipe("grpo")
    examples, _ = read_examples(plain.data.train_json)
    rated = [
        {"key": key_of(each), "mean_iou": mean, "spread": 0.1, "hit_rate": 0.5, "direct": False}
        for each, mean in zip(examples, (0.0, 0.5, 0.95, 0.9), strict=False)
    ]
    in_lines(ratings, rated)
    changes = {"data.ratings": str(ratings), "data.difficulty": (0.1, 0.9), "data.direct": 1.0}
    settings = read(recipe("grpo", **changes))
    kept, bad = start._read_rows(settings, lambda _: "")
    assert [key_of(each) for each in kept] == [rated[1]["key"], rated[3]["key"]] and not bad
    assert all(each.direct for each in kept)
    assert f"of {len(examples)} rows 2 are kept; data.difficulty=0.1,0.9" in capsys.readouterr().err
    before = resumed.facts_of_data(settings)
    in_lines(ratings, rated[:2])
    resumed.write_data(tmp_path, before)
    (line,) = resumed.changes(tmp_path, settings, resumed.facts_of_data(settings))
    assert "ratings.jsonl: its content has changed since the last start" in line
    resumed.write_data(tmp_path, resumed.facts_of_data(read(plain)))  # of an earlier version
    assert not resumed.changes(tmp_path, settings, resumed.facts_of_data(settings))


def in_lines(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_chat_data_are_the_same_examples(scenes, tmp_path):
    rows = json.loads((scenes / "sft.json").read_text())
    roles = {"human": "user", "gpt": "assistant"}
    chats = []
    for row in rows:
        turns = [{"role": roles[t["from"]], "content": t["value"]} for t in row["conversations"]]
        kept = {name: row[name] for name in ("id", "images", "type") if name in row}
        system = {"role": "system", "content": "You are a helpful assistant."}
        chats.append(kept | {"messages": [system, *turns]})
    path = in_lines(tmp_path / "sft.json", chats)
    assert read_examples(path) == read_examples(scenes / "sft.json")


def test_no_row_is_usable(refused, tmp_path):
    row = {"id": "a", "image": "a.jpg"}
    said = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A dog."}]
    path = in_lines(tmp_path / "a.jsonl", [row | {"conversations": said}] * 3)
    line = refused(**{"data.train_json": path})
    assert f"{path}: the data set is empty, all 3 rows are left out" in line
    assert "a.jsonl row 0: the answer holds no box" in line


def test_a_file_that_is_no_json(refused, tmp_path):
    path = tmp_path / "a.json"
    Image.new("RGB", (4, 4)).save(path, "PNG")
    line = refused(**{"data.train_json": str(path)})
    assert line.startswith(f"{path}: looks like a PNG image, where a JSON list or JSON lines are")
    path.write_text("id,images,question\n1,a.png,Where?\n")
    assert "a table divided by commas (CSV)" in refused("grpo", **{"data.train_json": str(path)})


def test_captions_of_images_are_no_targets(refused, tmp_path):
    said = [
        {"from": "Human", "value": "Picture 1: <image>\nPicture 2: <image>\nWhere?"},
        {"from": "GPT", "value": "<|box_start|>(10,20),(300,400)<|box_end|>"},
    ]
    row = {"id": "a", "images": ["a.jpg", "b.jpg"], "conversations": said}
    line = refused(**{"data.train_json": in_lines(tmp_path / "a.jsonl", [row])})
    assert "all 1 rows are left out" in line
    assert "a.jsonl row 0: which of the 2 images a box is in is not said" in line


def test_no_row_has_a_target_to_reward(refused, tmp_path):
    row = {"id": "a", "task": "diff", "images": ["a.jpg"], "question": "?", "response": "x"}
    path = in_lines(tmp_path / "a.jsonl", [row | {"targets": []}])
    assert "all 1 rows are left out" in refused("grpo", **{"data.train_json": path})


@pytest.mark.parametrize("most, count", [(8, 9), (2, 3), (1, 2)])
def test_rows_of_more_targets_than_count_are_told(refused, tmp_path, most, count):
    target = {"image": 1, "box": [1, 2, 300, 400], "label": "dog"}
    row = {"id": "a", "task": "diff", "images": ["a.jpg"], "question": "?"}
    path = in_lines(tmp_path / "a.jsonl", [row | {"targets": [target] * count}])
    line = refused("grpo", **{"data.train_json": path, "grpo.max_objects": most})
    assert "all 1 rows are left out" in line and "max_objects" in line and str(count) in line


def test_no_image_is_there(refused, tmp_path):
    line = refused(**{"data.image_root": str(tmp_path)})
    assert "questions has images that can be read below data.image_root=" in line
    assert "no such file" in line and " row 0: image" in line


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (RuntimeError("Unable to initialize backend 'tpu': no chips\nmore"), "no chips"),
        (AssertionError(), "JAX finds none"),  # JAX_PLATFORMS=cuda without a GPU
    ],
)
def test_a_platform_that_is_not_there(raised, reason, recipe, monkeypatch, tmp_path, refusal):
    def fail(*_):
        raise raised

    monkeypatch.setattr(devices.jax, "devices", fail)
    with pytest.raises(ConfigError, match=rf"no devices \(.*{reason}.*JAX_PLATFORMS") as error:
        devices.start(read(recipe("sft")).devices)
    assert "\n" not in str(error.value)
    flags = "--direction=export", "--source=no", f"--target={tmp_path / 'new'}"
    assert reason in refusal("convert_checkpoint", *flags)
