"""Which image a row's answer lies in: the rule, and what it says of the published file."""

import collections
import json

import pytest

from mirg_jax.data.mig_bench_rows import find_target_image, read_fields
from mirg_jax.errors import DataError
from mirg_jax.grounding.grammar import find_image_index

BOX = "<|box_start|>(1,2),(30,40)<|box_end|>"
ROW = {
    "task": "diff",
    "images": ["1.jpg", "2.jpg"],
    "question": "What differs?",
    "answer": [0.5, 0.2, 0.3, 1.048],
}


@pytest.mark.parametrize(
    ("question", "info", "image"),
    [
        ("The dog of the first image: locate it in the 2th image.", "", 2),
        ("What differs?", "", None),
        ("What differs?", None, None),
        ("Find the dog.", f"It is in the third image. {BOX}. ", 3),
        ("The dog of the first image.", f"It is in the third image. {BOX}. ", 3),
        ("The dog of the first image.", BOX, None),  # the answer, and no image
        ("Find it in Image-2.", "What do the people in image-1 need?", 2),
        ("Find it in Image-2.", ["in image-1", BOX], 2),
        ("Find it in image 4.", "", None),  # of three
        ("Locate in the second image the dog marked in the first image.", "", 2),
        ("Find the dog of image 1 next to that of image 2.", "", None),
        ("Find the dog.", f"It is in image 2, and not in the first image. {BOX}", 2),
        ("Find the dog.", f"Unlike in image 1 it is in image 2, or in image 3. {BOX}", None),
        ("Image 1: <image>\nImage 2: <image>\nFind the dog.", "", None),  # captions
        ("Image 1: <image>\nImage 2: <image>\nFind it in image 1.", "", 1),
    ],
)
def test_the_image_is_that_of_the_answer_in_words_or_else_of_the_question(question, info, image):
    assert find_target_image(question, info, 3) == image


def test_a_row_is_read_as_it_is_in_the_file():
    fields = read_fields(ROW | {"additional_info": f"It is in image 1: {BOX}", "other": 5})
    assert fields == ("diff", ("1.jpg", "2.jpg"), "What differs?", (0.5, 0.2, 0.3, 1.048), 1)
    assert read_fields(ROW).target_image is None
    with pytest.raises(DataError, match="'task' is missing"):
        read_fields({name: value for name, value in ROW.items() if name != "task"})


def test_what_the_published_file_says_of_the_image(shared):
    rows = json.loads(shared("mig_bench", "MIG_data.json").read_text())
    by_info, by_question, unknown = (collections.Counter() for _ in range(3))
    for row in rows:
        count = len(row["images"])
        image = read_fields(row).target_image
        asked = find_target_image(row["question"], "", count)
        known = by_info if "<|box_start|>" in row["additional_info"] else by_question
        (known if image else unknown)[row["task"]] += 1
        assert asked == (None if known is by_info else image)
        # All the published questions name it last.
        assert known is by_info or image == find_image_index(row["question"], count)
    assert by_info == {"group_grounding": 499}
    assert unknown == {"diff": 528}
    assert by_question.total() == 4295 - 499 - 528
    # Why `additional_info` is not read everywhere: it is another wording of the question here,
    # which often names the image to look in, the second, before the other.
    reasoning = [row for row in rows if row["task"] == "reasoning"]
    assert {read_fields(row).target_image for row in reasoning} == {2}
    last = [find_image_index(row["additional_info"], 2) for row in reasoning]
    assert collections.Counter(last) == {2: 62, 1: 39}
    asked = [find_target_image(row["additional_info"], "", 2) for row in reasoning]
    assert collections.Counter(asked) == {2: 78, None: 23}  # not a plain form of a question
