"""Names of tasks, and the task of rows of the MGrounding-630k layout."""

import json

import pytest

from mirg_jax.grounding import tasks


def test_every_name_leads_to_a_task_of_the_benchmark():
    assert len(tasks.MIG_BENCH_TASKS) == 10
    assert len(tasks.TRAINING_TASKS) == 7
    assert set(tasks.TRAINING_TASKS) <= set(tasks.MIG_BENCH_TASKS)
    assert set(tasks.MGROUNDING_FOLDERS.values()) == set(tasks.TRAINING_TASKS)
    assert set(tasks.MGROUNDING_TYPES.values()) == set(tasks.TRAINING_TASKS)
    groups = [task.group for task in tasks.MIG_BENCH_TASKS.values()]
    assert groups == [tasks.SPONTANEOUS] * 3 + [tasks.REFERENTIAL] * 7


@pytest.mark.parametrize(
    ("row", "task"),
    [
        ({"images": ["./MGrounding-630k/Common_Object/COCO/1.jpg"]}, "common_object"),
        ({"images": ["./MGrounding-630k/Free-Form/a.jpg"], "type": "gg_train"}, "reasoning"),
        ({"id": "x", "images": ["Group_Grounding/a.jpg"]}, "group_grounding"),
        ({"id": "x", "images": ["a.jpg"], "type": "gg_train"}, "group_grounding"),
        ({"id": "set_view_diff_0001", "type": "diff_train"}, "view_diff"),
        ({"id": "set_diff_0001"}, "diff"),
        ({"id": "multi_view-7", "type": "ot_train"}, "multi_view"),
        ({"id": "different_0001"}, "unknown"),
        ({"id": "subregion_0001"}, "unknown"),
        ({"id": 12, "images": None, "type": ["ot_train"]}, "unknown"),
        ({"type": "correspondence"}, "correspondence"),
        ({}, "unknown"),
    ],
)
def test_task_of_a_row(row, task):
    assert tasks.task_of_mgrounding(row) == task


def test_tasks_of_real_files(shared):
    benchmark = json.loads(shared("mig_bench", "MIG_data.json").read_text())
    assert {row["task"] for row in benchmark} == set(tasks.MIG_BENCH_TASKS)

    rows = json.loads(shared("real_photos", "train.json").read_text())
    for row in rows:
        assert tasks.task_of_mgrounding(row) == row["id"].split("dev_")[1].rpartition("_")[0]
        # Without the id the type must do, which doesn't know all tasks.
        by_type = tasks.task_of_mgrounding({**row, "id": ""})
        assert by_type == tasks.MGROUNDING_TYPES[row["type"]]
