"""Writers of the three formats: what they write is read back."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mirg_jax.data.examples import (
    DataError,
    Example,
    Target,
    read_examples,
    write_mgrounding,
    write_mig_bench,
    write_trajectories,
)
from mirg_jax.grounding.tasks import MIG_BENCH_TASKS

sides = st.lists(st.integers(0, 1000), min_size=2, max_size=2, unique=True).map(sorted)
boxes = st.tuples(sides, sides).map(lambda xy: (xy[0][0], xy[1][0], xy[0][1], xy[1][1]))
plain = st.text("abc é犬.?\n", min_size=1, max_size=9)
labels = plain.map(str.strip)
questions = st.sampled_from(["Where? ", "<image>\n<image>\nWhere is it?", "Locate it in image-2."])
examples = st.builds(
    Example,
    id=plain,
    task=st.sampled_from(sorted(MIG_BENCH_TASKS)),
    images=st.just(("./a/1.jpg", "b/é 2.png", "3.jpg")),
    question=questions,
    targets=st.lists(
        st.builds(Target, boxes, st.integers(1, 3), labels), min_size=1, max_size=3
    ).map(tuple),
)
in_tmp_path = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@in_tmp_path
@given(st.lists(examples, min_size=1, max_size=3), st.none() | plain)
def test_trajectories_come_back(tmp_path, originals, response):
    originals = [
        Example(**{**vars(example), "response": response, "source": "elsewhere row 3"})
        for example in originals
    ]
    write_trajectories(tmp_path / "rows.jsonl", originals)
    assert read_examples(tmp_path / "rows.jsonl") == (originals, [])


@in_tmp_path
@given(st.lists(examples, min_size=1, max_size=3))
def test_mgrounding_comes_back(tmp_path, originals):
    write_mgrounding(tmp_path / "rows.json", originals)
    assert read_examples(tmp_path / "rows.json") == (originals, [])


@in_tmp_path
@given(st.lists(examples, min_size=1, max_size=3))
def test_mig_bench_comes_back(tmp_path, originals):
    originals = [
        Example(**{**vars(e), "targets": (Target(e.targets[0].box, e.targets[0].image),)})
        for e in originals
    ]
    write_mig_bench(tmp_path / "rows.json", originals)
    assert read_examples(tmp_path / "rows.json") == (originals, [])


def test_real_files_come_back(shared, tmp_path):
    train, _ = read_examples(shared("real_photos", "train.json"))
    for write, name in ((write_mgrounding, "rows.json"), (write_trajectories, "rows.jsonl")):
        write(tmp_path / name, train)
        assert read_examples(tmp_path / name) == (train, [])
    for path in (shared("real_photos", "eval.json"), shared("mig_bench", "MIG_data.json")):
        examples, _ = read_examples(path)
        write_mig_bench(tmp_path / "rows.json", examples)
        assert read_examples(tmp_path / "rows.json") == (examples, [])


def test_what_a_format_cannot_hold_is_refused(tmp_path):
    target = Target((1, 2, 3, 4), 1)
    two = Example("a", "diff", ("1.jpg",), "?", (target, target))
    with pytest.raises(DataError, match="2 boxes"):
        write_mig_bench(tmp_path / "rows.json", [two])
    misnamed = Example("a_view_diff_1", "diff", ("1.jpg",), "?", (target,))
    with pytest.raises(DataError, match="another task"):
        write_mgrounding(tmp_path / "rows.json", [misnamed])
