"""The binaries on real photos in both real formats: they run, and they learn rows by heart.

A check of the path, not a result: the model is scored on the rows it was trained on.
"""

import json

import pytest
import small_families
from conftest import call, drawn

from mirg_jax.data.examples import read_examples, write_mig_bench

ROWS = 32
# Larger pictures, more of them and longer texts than in the recipes' procedural scenes.
SHAPES = (
    "--config.data.max_pixels=12544",
    "--config.data.shapes.lengths=(416,)",
    "--config.data.shapes.slots=(6,)",
    "--config.data.shapes.patches=(64,)",
)


def succeed(script: str, *flags: object) -> str:
    result = call(script, *flags, *SHAPES, timeout=1500)
    assert result.returncode == 0, result.stderr
    return result.stdout


def write_rows(photos, path):
    """Rows of one turn and one box, of all tasks."""
    rows = json.loads((photos / "train.json").read_text())
    single = [row for row in rows if len(row["conversations"]) == 2]
    single = [row for row in single if row["conversations"][1]["value"].count("<|box_start|>") == 1]
    chosen = single[:: len(single) // ROWS][:ROWS]  # the file goes by task
    path.write_text(json.dumps(chosen))


@pytest.mark.slow
@pytest.mark.parametrize("family", small_families.LATER)
def test_the_other_families_train_on_real_photos(shared, tiny_model_of, family, tmp_path):
    photos = shared("real_photos")
    write_rows(photos, tmp_path / "train.json")
    flags = (
        f"--config.model.path={tiny_model_of(family)}",
        f"--config.data.train_json={tmp_path}/train.json",
        f"--config.data.image_root={photos}",
        "--config.num_steps=2",
        "--config.batch_size=8",
    )
    sft, grpo = (f"--workdir={tmp_path}/{stage}" for stage in ("sft", "grpo"))
    succeed("train_sft", "--config=configs/sft_tiny.py", sft, *flags,
            "--config.rows_per_micro_batch=4")  # fmt: skip
    succeed("train_grpo", "--config=configs/grpo_tiny.py", grpo, *flags,
            "--config.prompts_per_micro_batch=4", f"--config.init_from={tmp_path}/sft")  # fmt: skip
    steps = [json.loads(line) for line in (tmp_path / "grpo/metrics.jsonl").open()]
    assert len(steps) == 2 and all(step["rejected"] == 0 for step in steps)
    assert all(step["logprob_diff"] < 1e-3 for step in steps)


@pytest.mark.slow
def test_rows_of_real_photos_are_learned_by_heart(shared, visit, tmp_path):
    photos = shared("real_photos")
    write_rows(photos, tmp_path / "train.json")
    examples, rejected = read_examples(tmp_path / "train.json")
    assert len(examples) == ROWS and not rejected
    write_mig_bench(tmp_path / "learned.json", examples)

    data = (
        f"--config.data.train_json={tmp_path}/train.json",
        f"--config.data.image_root={photos}",
    )
    sft = tmp_path / "sft"
    succeed(
        "train_sft",
        "--config=configs/sft_tiny.py",
        f"--workdir={sft}",
        *data,
        "--config.num_steps=200",
        f"--config.batch_size={ROWS}",
        f"--config.rows_per_micro_batch={ROWS}",
    )
    evaluate = ("--config=configs/grpo_tiny.py", f"--image_root={photos}")
    said = succeed(
        "evaluate",
        *evaluate,
        f"--checkpoint={sft}",
        f"--benchmark={tmp_path}/learned.json",
        f"--output_dir={tmp_path}/learned",
    )
    assert json.loads(said.splitlines()[-1])["acc"] >= 0.9

    # On from there by GRPO, and on photos that no row of training shows.
    grpo = tmp_path / "grpo"
    succeed(
        "train_grpo",
        "--config=configs/grpo_tiny.py",
        f"--workdir={grpo}",
        f"--config.init_from={sft}",
        *data,
        "--config.num_steps=2",
        "--config.batch_size=8",
        "--config.prompts_per_micro_batch=4",
    )
    steps = [json.loads(line) for line in (grpo / "metrics.jsonl").open()]
    assert len(steps) == 2 and all(step["rejected"] == 0 for step in steps)
    assert all(step["logprob_diff"] < 1e-3 for step in steps)
    said = succeed(
        "evaluate",
        *evaluate,
        f"--checkpoint={grpo}",
        f"--benchmark={photos}/eval.json",
        f"--output_dir={tmp_path}/held_out",
        "--limit=64",
    )
    assert json.loads(said.splitlines()[-1])["n"] == 64
    look_at(tmp_path / "held_out", photos, visit)


def look_at(folder, photos, visit):
    """The report in a browser: chosen from, sorted, opened, its boxes where the file has them."""
    rows = json.loads((photos / "eval.json").read_text())
    scored = json.loads((folder / "scores.json").read_text())["rows"]
    page = visit(folder / "report.html")
    count, facets = len(scored), {"Task": ("GG", "group_grounding"), "Result": ("hit", True)}
    fields = {"Task": "task", "Result": "hit"}
    for label, (value, wanted) in facets.items():
        page.get_by_label(label).select_option(value)
        found = sum(row[fields[label]] == wanted for row in scored)
        told = page.locator("#count").inner_text()
        assert told.endswith(f"of {found}, of {count} in all") or (not found and "none" in told)
        page.get_by_label(label).select_option("all")

    page.get_by_label("Sort by").select_option("IoU")
    page.get_by_label("largest first").check()
    page.locator("#list button").first.click()
    best = max(scored, key=lambda row: row["iou"])
    assert page.locator("dialog h2").inner_text().startswith(f"Row {best['index']},")
    row = rows[best["index"]]
    assert page.locator("dialog svg image").count() == len(row["images"])
    (truth,) = drawn(page, "truth")
    assert truth[1:] == pytest.approx(row["answer"], abs=0.005)
    if best["target_image"]:
        assert truth[0] == best["target_image"]
    (answer,) = drawn(page, "answer")
    assert answer[1:] == pytest.approx(best["box"], abs=0.005)
