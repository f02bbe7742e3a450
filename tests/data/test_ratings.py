"""Ratings of rows by hand, and which rows they keep."""

import json

import pytest

from mirg_jax.data import answers, ratings
from mirg_jax.data.answers import overlaps
from mirg_jax.data.examples import Example, Target, key_of
from mirg_jax.errors import DataError


def box(x1, y1, x2, y2):
    return f"<|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>"


def answer(*parts):
    return f"<think>t</think><answer>{' '.join(parts)}</answer>"


FIRST, SECOND = (0, 0, 100, 100), (500, 500, 700, 700)
ONE = Example("a", "diff", ("1.png", "2.png"), "Where?", (Target(FIRST, 2),))
TWO = Example("b", "diff", ("1.png", "2.png"), "Where?", (Target(FIRST, 2), Target(SECOND, 1)))


@pytest.mark.parametrize(
    ("example", "said", "wanted"),
    [
        (ONE, answer("<bbox_id>[2-1]</bbox_id>" + box(*FIRST)), 1.0),
        (ONE, "<answer><bbox_id>[2-1]</bbox_id>" + box(0, 0, 100, 50) + "</answer>", 0.5),
        (ONE, answer("<bbox_id>[1-1]</bbox_id>" + box(*FIRST)), 0.0),  # another image
        (ONE, answer(box(*FIRST)), 0.0),  # no image
        (ONE, "nothing", 0.0),
        (ONE, answer(*["<bbox_id>[2-1]</bbox_id>" + box(*FIRST), box(*SECOND)]), 0.5),  # one more
        (TWO, answer("<bbox_id>[1-1]</bbox_id>" + box(*SECOND)), 0.5),  # one too few
        (
            TWO,
            answer(
                "<bbox_id>[1-1]</bbox_id>" + box(*SECOND),
                "<bbox_id>[2-1]</bbox_id>" + box(0, 0, 50, 50),
            ),
            0.625,
        ),
    ],
)
def test_an_overlap_counts_boxes_in_the_right_image(example, said, wanted):
    assert overlaps([said], [example]).tolist() == [wanted]


def test_of_several_boxes_the_best_pairs_are_matched():
    example = ONE.__class__("c", "diff", ("1.png",), "Where?", (Target((0, 0, 100, 100)),))
    said = answer(box(0, 0, 100, 20), box(0, 0, 100, 80))
    assert overlaps([said], [example]).tolist() == [0.4]


def test_overlaps_don_t_depend_on_what_is_computed_together(monkeypatch):
    said = [answer(f"<bbox_id>[2-1]</bbox_id>{box(0, 0, 100, n)}") for n in range(10, 100, 10)]
    found = overlaps(said, [ONE] * 9)
    assert found.tolist() == [n / 10 for n in range(1, 10)] and not len(overlaps([], []))
    monkeypatch.setattr(answers, "_AT_ONCE", 4)
    assert overlaps(said, [ONE] * 9).tolist() == found.tolist()


def test_a_rating_is_read_back_by_what_the_row_says(tmp_path):
    said = [answer("<bbox_id>[2-1]</bbox_id>" + box(*FIRST)), "nothing"]
    row, other = ratings.rate([ONE, TWO], [said, said[:1]], direct=False)
    assert (other["id"], other["answers"], other["mean_iou"]) == ("b", 1, 0.5)
    assert row | {"key": ""} == {
        "key": "", "id": "a", "source": "", "answers": 2, "mean_iou": 0.5, "spread": 0.5,
        "hit_rate": 0.5, "direct": False,
    }  # fmt: skip
    (tmp_path / "r.jsonl").write_text(json.dumps(row) + "\n")
    found = ratings.read(tmp_path / "r.jsonl")
    assert found == {key_of(ONE): ratings.Rating(0.5, 0.5, 0.5, False)}
    assert key_of(ONE) != key_of(TWO)
    with pytest.raises(DataError, match=r"scripts/rate_rows.py writes it"):
        ratings.read(tmp_path / "nowhere.jsonl")
    for wrong in ({"mean_iou": float("nan")}, {"mean_iou": 50}, {"hit_rate": -1}):
        (tmp_path / "wrong.jsonl").write_text(json.dumps(row | wrong) + "\n")
        with pytest.raises(DataError, match=r"wrong.jsonl line 1: is no rating"):
            ratings.read(tmp_path / "wrong.jsonl")
    for none in (b"", b"\x00\xff" * 50):
        (tmp_path / "none.jsonl").write_bytes(none)
        with pytest.raises(
            DataError, match=r"none.jsonl: holds no ratings: it is empty, or not JSON"
        ):
            ratings.read(tmp_path / "none.jsonl")
    (tmp_path / "twice.jsonl").write_text(2 * (json.dumps(row) + "\n"))
    assert len(ratings.read(tmp_path / "twice.jsonl")) == 1  # rows that are alike
    (tmp_path / "other.jsonl").write_text('{"key": "a"}\n')
    with pytest.raises(DataError, match=r"other.jsonl line 1: is no rating"):
        ratings.read(tmp_path / "other.jsonl")


def rows_of(means, direct=False, responses=None):
    """Rows whose ratings have these mean IoUs; None is of a row without a rating."""
    examples, found = [], {}
    for number, mean in enumerate(means):
        response = responses[number] if responses else None
        target = (Target(FIRST, 1),)
        example = Example(str(number), "diff", ("1.png",), f"{number}?", target, response)
        examples.append(example)
        if mean is not None:
            found[key_of(example)] = ratings.Rating(mean, 0.0, 0.0, direct)
    return examples, found


def test_rows_are_kept_by_difficulty_with_both_ends():
    examples, found = rows_of([0.0, 0.1, 0.5, 0.9, 0.95, None])
    kept, dropped = ratings.by_difficulty(examples, found, (0.1, 0.9))
    assert [each.id for each in kept] == ["1", "2", "3"]
    assert dropped == {"too hard": 1, "too easy": 1, "without a rating": 1}


def test_trajectories_are_kept_by_what_thinking_gains():
    """Direct answers and trajectory: what is kept is marked."""
    cases = [
        (0.8, 100, True), (0.8, 87, False), (0.5, 55, True), (0.5, 54, False),
        (0.4, 50, True), (0.4, 49, True), (0.4, 47, False), (0.0, 10, True), (0.0, 0, False),
    ]  # fmt: skip
    said = [answer("<bbox_id>[1-1]</bbox_id>" + box(0, 0, 100, high or 1)) for _, high, _ in cases]
    said[-1] = "nothing"
    examples, found = rows_of([direct for direct, *_ in cases], direct=True, responses=said)
    kept, dropped = ratings.by_gain(examples, found, (0.1, 0.2))
    assert [each.id for each in kept] == [str(i) for i, case in enumerate(cases) if case[-1]]
    assert dropped == {"answered as well without thoughts": 2, "missed with thoughts too": 2}
    plain, found = rows_of([0.9], direct=True)
    assert ratings.by_gain(plain, found, (0.1, 0.2)) == (plain, {})
    _, thought = rows_of([direct for direct, *_ in cases], responses=said)
    with pytest.raises(DataError, match=r"rated by answers with thoughts; .*direct=True"):
        ratings.by_gain(examples, thought, (0.1, 0.2))


def test_what_is_left_out_is_said_in_a_line(tmp_path):
    examples, found = rows_of([0.0, 0.5, None])
    path = tmp_path / "r.jsonl"
    lines = [{"key": key} | rating._asdict() for key, rating in found.items()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    kept, line = ratings.choose(examples, str(path), (0.1, 0.9), ())
    assert [each.id for each in kept] == ["1"]
    assert line == (
        f"{path}: of 3 rows 1 are kept; data.difficulty=0.1,0.9 leaves out 1 too hard, "
        "1 without a rating"
    )
    with pytest.raises(DataError, match=r"of 3 rows 0 are kept.*widen the bounds"):
        ratings.choose(examples, str(path), (0.6, 0.9), ())
