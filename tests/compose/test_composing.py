"""Runs that compose: lossy photos, tracks, kills, refusals."""

import dataclasses
import json
import re

import numpy as np
import pytest
import small_world
from PIL import Image
from small_world import in_pixels, near, settings

from mirg_jax.compose import compose, index, sources
from mirg_jax.compose.sources import Source, parse_source
from mirg_jax.data.images import ImageRoot
from mirg_jax.data.left_out import LeftOut
from mirg_jax.errors import ConfigError, DataError


def content(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "settings.json")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if path.name not in ("manifest.json", "report.html")
    }


def blocks_in(pixels):
    """How much more neighbours differ across the borders of 8x8 blocks than elsewhere."""
    steps = np.abs(np.diff(pixels.astype(float), axis=1)).mean(axis=(0, 2))
    at_borders = np.arange(1, len(steps) + 1) % 8 == 0
    return steps[at_borders].mean() / steps[~at_borders].mean()


def test_edits_are_not_told_by_compression(tmp_path):
    """Of lossy photos: both images are written alike, and no blocks show where the edit begins."""
    small_world.write(tmp_path / "in", photos=12, size=(320, 240))
    for path in (tmp_path / "in/images").iterdir():
        Image.open(path).save(path.with_suffix(".jpg"), quality=8)
    text = (tmp_path / "in/instances.json").read_text().replace(".png", ".jpg")
    (tmp_path / "in/instances.json").write_text(text)
    counts = {"sft": 8, "rl": 0, "eval": 0}
    made = settings(tmp_path / "in", counts=counts, tasks=("diff",), eval_share=0)
    compose.compose(made, tmp_path / "out")
    before, after = [], []
    for row in map(json.loads, (tmp_path / "out/sft.jsonl").open()):
        before.append(blocks_in(np.asarray(Image.open(tmp_path / "in" / row["photos"][0]))))
        files = [Image.open(tmp_path / "out" / path) for path in row["images"]]
        assert {(file.format, file.mode, file.size) for file in files} == {
            ("PNG", "RGB", files[0].size)
        }
        assert not any(file.info for file in files)
        one, other = map(np.asarray, files)
        after += [blocks_in(one), blocks_in(other)]
        x1, y1, x2, y2 = (round(each) for each in in_pixels(row, files[0].size))
        assert (one[y1:y2, x1:x2] != other[y1:y2, x1:x2]).any()
        one, other = one.copy(), other.copy()
        one[y1:y2, x1:x2] = other[y1:y2, x1:x2] = 0
        assert np.array_equal(one, other)
    assert np.mean(before) > 2 and np.abs(np.subtract(after, 1)).mean() < 0.1


def test_tracks_are_followed(tmp_path):
    truth = small_world.write_mot(tmp_path / "in/seq")
    made = compose.Settings(
        (Source("mot", tmp_path / "in"),),
        ImageRoot(tmp_path / "in"),
        {"sft": 20, "rl": 0, "eval": 0},
        tasks=("object_tracking",),
        eval_share=0.0,
    )
    compose.compose(made, tmp_path / "out")
    followed = 0
    for row in map(json.loads, (tmp_path / "out/sft.jsonl").open()):
        if not row["images"][0].startswith("photos/"):
            continue  # windows of one frame
        followed += 1
        frames = [int(path[-10:-4]) for path in row["images"]]
        assert frames == sorted(set(frames)) and len(frames) >= 3
        numbers = re.search(r"\((\d+),(\d+)\),\((\d+),(\d+)\)", row["question"]).groups()
        sides = (0.16, 0.12) * 2  # of a frame, in grid units
        asked = [int(n) * side for n, side in zip(numbers, sides, strict=True)]
        (track,) = (t for t, box in truth[frames[0]].items() if near(box, asked))
        answer = in_pixels(row, (160, 120))
        assert near(truth[frames[row["targets"][0]["image"] - 1]][track], answer)
        assert row["targets"][0]["label"] == "pedestrian"
    assert followed >= 8


class Killed(BaseException):
    pass


def test_killed_and_resumed_gives_the_same_files(tmp_path, monkeypatch):
    """Whatever the order of rows in the file, and wherever the run is killed."""
    coco = small_world.write(tmp_path / "in", seed=1, photos=40)
    counts = {"sft": 20, "rl": 10, "eval": 10}
    monkeypatch.setattr(compose, "_PIECE", 7)
    compose.compose(settings(tmp_path / "in", counts=counts), tmp_path / "whole")
    for name in ("images", "annotations", "categories"):
        coco[name].reverse()
    (tmp_path / "in/instances.json").write_text(json.dumps(coco))

    write, left = compose.writing.write_images, iter([5, 9, 12])

    def killed_after(count):
        calls = iter(range(count))

        def fail(*args):
            if next(calls, None) is None:
                raise Killed
            return write(*args)

        return fail

    for count in left:
        monkeypatch.setattr(compose.writing, "write_images", killed_after(count))
        with pytest.raises(Killed):
            compose.compose(settings(tmp_path / "in", counts=counts), tmp_path / "killed")
        assert not (tmp_path / "killed/manifest.json").exists()
        for half in ("made/half.png", "sft.jsonl"):
            (tmp_path / f"killed/{half}.0123456789ab.part").touch()
    monkeypatch.setattr(compose.writing, "write_images", write)
    compose.compose(settings(tmp_path / "in", counts=counts), tmp_path / "killed")
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    again = compose.compose(settings(tmp_path / "in", counts=counts), tmp_path / "killed")
    assert again == json.loads((tmp_path / "killed/manifest.json").read_text())


def test_folders_of_something_else_are_refused(tmp_path):
    small_world.write(tmp_path / "in", photos=12)
    counts = {"sft": 2, "rl": 0, "eval": 0}
    made = settings(tmp_path / "in", counts=counts, tasks=("region",))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="has 'notes.txt', which was not composed"):
        compose.compose(made, tmp_path / "full")
    compose.compose(made, tmp_path / "out")
    other = settings(tmp_path / "in", counts=counts, tasks=("region",), seed=8)
    with pytest.raises(ConfigError, match="composed with other settings"):
        compose.compose(other, tmp_path / "out")


def test_labels_of_other_content_are_refused(tmp_path, refusal):
    """The files follow from them: a run that goes on, or is over, would keep the old ones."""
    coco = small_world.write(tmp_path / "in", photos=12)
    flags = (
        f"--source=coco={tmp_path}/in/instances.json@images",
        f"--image_root={tmp_path}/in",
        f"--output_dir={tmp_path}/out",
        "--sft=2",
        "--tasks=region",
    )
    assert refusal("compose", *flags) == "" == refusal("compose", *flags)
    before = content(tmp_path / "out")
    coco["categories"][0]["name"] = "wolf"
    (tmp_path / "in/instances.json").write_text(json.dumps(coco))
    line = refusal("compose", *flags)
    assert "composed with labels of other content" in line and "another folder" in line
    assert content(tmp_path / "out") == before
    record = tmp_path / "out/settings.json"
    earlier = json.loads(record.read_text())
    del earlier["labels_sha256"]  # as an earlier version wrote it
    record.write_text(json.dumps(earlier))
    assert refusal("compose", *flags) == ""


def test_photos_that_have_changed_are_refused(tmp_path):
    small_world.write(tmp_path / "in", photos=12)
    index.build_index(
        tmp_path / "index",
        [parse_source(f"coco={tmp_path}/in/instances.json@images", ())],
        ImageRoot(tmp_path / "in"),
        seed=0,
        eval_share=0.1,
        left_out=LeftOut(),
    )
    root = ImageRoot(tmp_path / "in")
    index.check_photos(tmp_path / "index", root)
    photo = next((tmp_path / "in/images").iterdir())
    content = photo.read_bytes()
    photo.write_bytes(content + b"\0")
    with pytest.raises(DataError, match=f"{photo.name}.*has changed since its labels were read"):
        index.check_photos(tmp_path / "index", root)
    photo.write_bytes(content)  # the former one again
    index.check_photos(tmp_path / "index", root)


@pytest.mark.parametrize("wrong", ["labels", "root", "split"])
def test_an_attempt_that_made_nothing_claims_no_folder(tmp_path, refusal, wrong):
    small_world.write(tmp_path / "in", photos=12)
    (tmp_path / "bad.json").write_text(json.dumps({"images": [], "annotations": []}))
    right = {
        "--source": f"coco={tmp_path}/in/instances.json@images",
        "--image_root": f"{tmp_path}/in",
        "--output_dir": f"{tmp_path}/out",
        "--sft": "2",
        "--eval_share": "0",
        "--tasks": "region",
    }
    other = {
        "labels": {"--source": f"coco={tmp_path}/bad.json"},
        "root": {"--image_root": f"{tmp_path}"},
        "split": {"--sft": "0", "--evaluation": "2", "--eval_share": "0.0001"},
    }[wrong]

    def flags(values):
        return [f"{name}={value}" for name, value in values.items()]

    assert refusal("compose", *flags(right | other))
    assert refusal("compose", *flags(right)) == ""
    assert (tmp_path / "out/sft.jsonl").exists()


def test_a_file_without_photos_is_told_before_anything_is_composed(tmp_path):
    """Frames of a sequence go to one split, so that one sequence has none for the other."""
    small_world.write_mot(tmp_path / "in/seq")
    made = compose.Settings(
        (Source("mot", tmp_path / "in"),),
        ImageRoot(tmp_path / "in"),
        {"sft": 4, "rl": 0, "eval": 2},
        tasks=("region",),
    )
    told = "no photo is for eval.json, as all 12 are for the other split .frames of a sequence stay"
    with pytest.raises(DataError, match=told):
        compose.compose(made, tmp_path / "out")
    assert not list((tmp_path / "out/made").iterdir())
    compose.compose(
        dataclasses.replace(made, counts={"sft": 4, "rl": 0, "eval": 0}), tmp_path / "out"
    )


def test_what_labels_do_not_tell_is_told(tmp_path, refusal, capsys):
    coco = small_world.write(tmp_path / "in", photos=12)
    rows = [
        {"image": each["file_name"], "bbox": [10, 10, 60, 50], "caption": "a thing", "label": "dog"}
        for each in coco["images"]
    ]
    (tmp_path / "in/refs.json").write_text(json.dumps(rows))
    flags = (
        f"--source=refs={tmp_path}/in/refs.json@images",
        f"--image_root={tmp_path}/in",
        "--sft=4",
        "--eval_share=0",
        "--tasks=region,correspondence",
    )
    assert refusal("compose", *flags, f"--output_dir={tmp_path}/out") == ""
    said = capsys.readouterr().out
    assert re.search(
        "correspondence +2 +0 +0 +no photo is known to show a drawn label exactly", said
    )
    assert "labels of refs don't say what else a photo shows" in said
    assert f"open {tmp_path}/out/report.html" in said
    more = ("--complete=refs", f"--output_dir={tmp_path}/complete")
    assert refusal("compose", *flags, *more) == ""
    said = capsys.readouterr().out
    assert re.search("correspondence +2 +2", said) and "labels of refs" not in said


def test_labels_in_folders_are_told_apart_by_content(tmp_path):
    small_world.write_mot(tmp_path / "seq")
    source = Source("mot", tmp_path)
    before = sources.hash_labels(source)
    (tmp_path / "seq/img1/000001.jpg").unlink()  # no label
    assert sources.hash_labels(source) == before
    with (tmp_path / "seq/gt/gt.txt").open("a") as file:
        file.write("\n1,9,1,1,9,9,1,1,1.0")
    assert sources.hash_labels(source) != before
    (tmp_path / "yolo/labels").mkdir(parents=True)
    (tmp_path / "yolo/data.yaml").write_text("names: [dog]")
    yolo = Source("yolo", tmp_path / "yolo/data.yaml")
    before = sources.hash_labels(yolo)
    (tmp_path / "yolo/labels/a.txt").write_text("0 0.5 0.5 0.1 0.1")
    assert sources.hash_labels(yolo) != before


def test_labels_that_cannot_be_used_are_the_reason(tmp_path):
    coco = small_world.write(tmp_path / "in", photos=12)
    for row in coco["annotations"]:
        row["bbox"] = [0.1, 0.1, -0.2, 0.2]
    (tmp_path / "in/instances.json").write_text(json.dumps(coco))
    made = settings(tmp_path / "in", counts={"sft": 1, "rl": 0, "eval": 0})
    with pytest.raises(DataError, match=r"labels can't be used, the first: .*instances.json"):
        compose.compose(made, tmp_path / "out")


def test_what_cannot_be_told_is_left_out(tmp_path):
    """One class in all photos: nothing is known to be without it."""
    coco = small_world.write(tmp_path / "in", photos=12)
    for row in coco["annotations"]:
        row["category_id"] = 1
    (tmp_path / "in/instances.json").write_text(json.dumps(coco))
    counts = {"sft": 1, "rl": 0, "eval": 0}
    made = settings(tmp_path / "in", counts=counts, tasks=("group_grounding",), eval_share=0)
    with pytest.raises(DataError, match="no example can be composed: too few photos are known"):
        compose.compose(made, tmp_path / "out")


def test_the_binary_composes_and_refuses(tmp_path, refusal, capsys):
    coco = small_world.write(tmp_path / "in", photos=12)
    coco["annotations"][0]["bbox"] = [0.1, 0.1, -0.2, 0.2]
    (tmp_path / "in/instances.json").write_text(json.dumps(coco))
    photo = tmp_path / "in/images" / coco["images"][0]["file_name"]
    photo.rename(tmp_path / "elsewhere.png")
    photo.symlink_to(tmp_path / "elsewhere.png")
    flags = (
        f"--source=coco={tmp_path}/in/instances.json@images",
        f"--image_root={tmp_path}/in",
        f"--output_dir={tmp_path}/out",
    )
    assert refusal("compose", *flags).startswith("--sft, --rl, --evaluation: all are 0")
    assert "'static' is none of diff" in refusal("compose", *flags, "--sft=2", "--tasks=static")
    assert "give KIND=LABELS" in refusal("compose", "--source=x", *flags[1:], "--sft=2")
    told = refusal("compose", *flags, "--sft=2", "--evaluation=2", "--eval_share=0")
    assert told.startswith("--eval_share: is 0")
    assert not (tmp_path / "out").exists()
    assert refusal("compose", *flags, "--sft=4", "--tasks=region,diff") == ""
    said = capsys.readouterr().out
    assert re.search(r"sft.jsonl +region +2 +2 +0", said)
    assert re.search(
        r"2 labels or photos left out, the first: .*(instances.json|follow_links)", said
    )
    page = (tmp_path / "out/report.html").read_text("utf-8")
    shown = re.findall(r"<td>sft.jsonl</td><td>(\w+)</td>", page.replace("\n", ""))
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert set(shown) == set(manifest["files"]["sft.jsonl"]) == {"region", "diff"}
    assert shown[:2] == re.findall(r"^sft.jsonl +(\w+)", said, re.MULTILINE)
    other = (*flags[:2], f"--output_dir={tmp_path}/links", "--sft=4", "--tasks=region")
    assert refusal("compose", *other, "--follow_links") == ""
    assert "1 labels or photos left out" in capsys.readouterr().out
    assert (tmp_path / "out/report.html").exists()


def test_photos_that_are_cut_are_left_out(tmp_path):
    """Their sizes can be read, their pixels can't."""
    coco = small_world.write(tmp_path / "in", photos=12)
    for row in coco["images"][:6]:
        path = tmp_path / "in/images" / row["file_name"]
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    made = small_world.settings(
        tmp_path / "in",
        counts={"sft": 30, "rl": 0, "eval": 0},
        tasks=("diff", "refer_grounding", "correspondence"),
        eval_share=0.0,
    )
    manifest = compose.compose(made, tmp_path / "out")
    for row in manifest["files"]["sft.jsonl"].values():
        assert row["examples"] > 5
        found = [e for e in row["draws_left_out"] if e["reason"] == "an image can't be read"]
        assert found and "get the file again" in found[0]["first"]


def test_an_output_folder_within_the_labels_is_refused(tmp_path, refusal):
    (tmp_path / "y/images").mkdir(parents=True)
    (tmp_path / "y/classes.txt").write_text("dog")
    flags = (f"--image_root={tmp_path}", f"--output_dir={tmp_path}/y/out", "--sft=2")
    told = refusal("compose", f"--source=yolo={tmp_path}/y", *flags)
    assert "y/out: lies within the labels of --source=yolo=" in told
    assert "give a folder outside of them" in told
