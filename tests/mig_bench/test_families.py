"""Answers of each family of models, in its own form, on every row of MIG-Bench."""

import random
import time

import numpy as np
import pytest
from answer_forms import SAID
from authors_rule import FORMS, answer_box, reference_box, reference_iou
from bench_rows import file_row, rows_of
from PIL import Image

from mirg_jax.data.images import image_size
from mirg_jax.errors import ConfigError, DataError
from mirg_jax.grounding import grammar
from mirg_jax.mig_bench import families, scoring
from mirg_jax.mig_bench.families import FAMILIES

# Answers ------------------------------------------------------------------------------------------


def size_of(path):
    """Some size of its own for each image, of whole patches."""
    rng = random.Random(path)
    return 28 * rng.randint(4, 60), 28 * rng.randint(4, 60)


def meant_image(item):
    return item.images[(item.target_image or len(item.images)) - 1]


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_of_every_family_are_read_on_every_row(benchmark, name):
    rng = random.Random(name)
    family = FAMILIES[name]
    texts, expected = [], []
    for item in benchmark:
        x1, y1, x2, y2 = (min(max(n + rng.randint(-60, 60), 0), 1000) for n in answer_box(item))
        box = min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
        text, said = SAID[name](box, size_of(meant_image(item)))
        assert (said[0] < said[2] and said[1] < said[3]) or min(x2 - x1, y2 - y1) < 9
        valid = said[0] < said[2] and said[1] < said[3]
        if family.scale_y and valid:
            said[1] = round(min(said[1] * 1.05, 0.999), 3)
            said[3] = round(min(said[3] * 1.10, 0.999), 3)
        texts.append(text)
        expected.append(reference_iou(item.answer, said if valid else None))
    start = time.process_time()
    read = [
        families.to_grammar(family, text, item, size_of)
        for text, item in zip(texts, benchmark, strict=True)
    ]
    scores = scoring.score(benchmark, read, "answer", scale_y=family.scale_y)
    assert time.process_time() - start < 40
    assert [r.iou for r in scores.rows] == pytest.approx(expected, abs=1e-12)
    assert 0.3 < scores.overall.hit_rate < 0.95  # the comparison saw both


@pytest.mark.parametrize("form", range(len(FORMS)))
def test_authors_protocol_equals_an_independent_reading_in_every_form_on_every_row(benchmark, form):
    rng = random.Random(form)
    texts, expected = [], []
    for item in benchmark:
        texts.append(FORMS[form]([max(0, n + rng.randint(-60, 60)) for n in answer_box(item)]))
        expected.append(reference_iou(item.answer, reference_box(texts[-1])[0]))
    scores = families.score(FAMILIES["qwen2_vl"], benchmark, texts, "authors")
    assert [r.iou for r in scores.rows] == expected
    assert [r.hit for r in scores.rows] == [iou >= 0.5 for iou in expected]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_authors_protocol_reads_every_family_alike(benchmark, name):
    rng = random.Random(0)
    family, texts, expected = FAMILIES[name], [], []
    for item in benchmark:
        box = [max(0, n + rng.randint(-60, 60)) for n in answer_box(item)]
        texts.append(SAID[name](box, size_of(meant_image(item)))[0])
        read, single = reference_box(texts[-1])
        if family.scale_y and single:
            read[1] = round(min(read[1] * 1.05, 0.999), 3)
            read[3] = round(min(read[3] * 1.10, 0.999), 3)
        expected.append(reference_iou(item.answer, read))
    scores = families.score(family, benchmark, texts, "authors")  # needs no images
    assert [r.iou for r in scores.rows] == expected
    assert scores.scale_y == (name == "migician")


def box(*corners):
    return "<|box_start|>({},{}),({},{})<|box_end|>".format(*corners)


def numbered(image, number, *corners):
    return grammar.format_id(image, number) + box(*corners)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("qwen2_vl", "(1,2),(3,4)", box(1, 2, 3, 4)),
        ("qwen2_vl", "<|box_start|>(1,2),(3,4)<|box_start|>.", box(1, 2, 3, 4) + "."),  # as asked
        ("qwen2_vl", "(1, 2), (3, 4) and (0.25, 0.5),(1.0,1)",
         box(1, 2, 3, 4) + " and " + box(250, 500, 1000, 1000)),
        ("qwen2_vl", box(1, 2, 3, 4) + box(5, 6, 7, 8), box(1, 2, 3, 4) + box(5, 6, 7, 8)),
        ("qwen2_vl", "(1,2),(3,4)<|box_start|>(5,6),(7,8)", box(1, 2, 3, 4) + box(5, 6, 7, 8)),
        ("qwen2_vl", "(30,40),(1,2)", box(30, 40, 1, 2)),  # inverted it stays
        ("qwen2_vl", "(1,2),(3,4000)", box(1, 2, 3, 4000)),  # and off the grid
        ("internvl2", "<box>[[1, 2,3, 4]]</box>", box(1, 2, 3, 4)),
        ("internvl2", "[1.4, 2.6, 3, 4]", box(1, 3, 3, 4)),
        ("minicpm_v", "<box> 1 2  3 4 </box>", box(1, 2, 3, 4)),
        ("mantis", "(0.1, 0.2, 0.3, 0.4)", box(100, 200, 300, 400)),
        *(
            (name, "(0.0,0.0),(1.0,1.0) [0, 0.5, 1.002, 1]",
             box(0, 0, 1000, 1000) + " " + box(0, 500, 1000, 1000))
            for name in ("qwen2_vl", "qwen2_5_vl", "mantis")
        ),
        ("qwen2_vl", "(0,0),(2,1.5)", box(0, 0, 2, 2)),
        ("llava_onevision", "[100, 200, 300, 400]", box(100, 200, 300, 400)),
        ("univg_r1", "<answer>(1,2),(3,4)</answer>", f"<answer>{box(1, 2, 3, 4)}</answer>"),
        ("mirg", "(1,2),(3,4)", "(1,2),(3,4)"),  # ours are read as they are
        # Pixels of the image that is named, or else of the row's, the second.
        ("qwen2_5_vl", "[20, 5, 40, 10]", box(200, 100, 400, 200)),
        ("qwen2_5_vl", "In the first image: [20, 5, 40, 10], [40, 10, 80, 20]",
         "In the first image: " + box(100, 50, 200, 100) + ", " + box(200, 100, 400, 200)),
        ("qwen2_5_vl", "[20, 5, 104, 51]", box(200, 100, 1000, 1000)),
        ("qwen2_5_vl", "[-20, 5, 40, 10.4]", box(0, 100, 400, 208)),
        ("mantis", "[-0.01, 0.2, 0.3, 0.4]", box(0, 200, 300, 400)),
        ("qwen2_vl", "(-1,2),(3,4)", box(-1, 2, 3, 4)),  # off the grid it stays
        # The image named beside the box: by a field before or behind it, as a number or in words,
        ("qwen2_5_vl", '{"image": 1, "bbox_2d": [20, 5, 40, 10]}',
         '{"image": 1, "bbox_2d": ' + numbered(1, 1, 100, 50, 200, 100) + "}"),
        ("qwen2_5_vl", '{"bbox_2d": [20, 5, 40, 10], "image_index": 1}',
         '{"bbox_2d": ' + numbered(1, 1, 100, 50, 200, 100) + ', "image_index": 1}'),
        ("qwen2_5_vl", "{'bbox_2d': [20, 5, 40, 10], 'img_idx': '1', 'label': 'a dog'}",
         "{'bbox_2d': " + numbered(1, 1, 100, 50, 200, 100)
         + ", 'img_idx': '1', 'label': 'a dog'}"),
        ("qwen2_5_vl", '{"image": "Image-1", "bbox_2d": [20, 5, 40, 10]}',
         '{"image": "Image-1", "bbox_2d": ' + numbered(1, 1, 100, 50, 200, 100) + "}"),
        ("qwen2_5_vl", '{"bbox_2d": [20, 5, 40, 10], "label": "the dog in image 1"}',
         '{"bbox_2d": ' + numbered(1, 1, 100, 50, 200, 100) + ', "label": "the dog in image 1"}'),
        # around a list of boxes, and in an object whose end was cut,
        ("qwen2_5_vl", '{"image": 1, "objects": [{"bbox_2d": [20, 5, 40, 10]}, {"bbox_2d": '
         "[40, 10, 80, 20]",
         '{"image": 1, "objects": [{"bbox_2d": ' + numbered(1, 1, 100, 50, 200, 100)
         + '}, {"bbox_2d": ' + numbered(1, 2, 200, 100, 400, 200)),
        # each box its own, and from 0 where one is 0,
        ("qwen2_5_vl", '[{"bbox_2d": [20, 5, 40, 10], "image": 2}, {"bbox_2d": [20, 5, 40, 10], '
         '"image": 1}]',
         '[{"bbox_2d": ' + numbered(2, 1, 200, 100, 400, 200) + ', "image": 2}, {"bbox_2d": '
         + numbered(1, 1, 100, 50, 200, 100) + ', "image": 1}]'),
        ("qwen2_5_vl", '{"image_id": 0, "bbox_2d": [20, 5, 40, 10]}',
         '{"image_id": 0, "bbox_2d": ' + numbered(1, 1, 100, 50, 200, 100) + "}"),
        # and words behind the box; of other families too.
        ("qwen2_5_vl", "It is at [20, 5, 40, 10] in the first image.",
         "It is at " + numbered(1, 1, 100, 50, 200, 100) + " in the first image."),
        ("qwen2_vl", "(1,2),(3,4) in image 1, and in image 2 (5,6),(7,8)",
         numbered(1, 1, 1, 2, 3, 4) + " in image 1, and in image 2 " + box(5, 6, 7, 8)),
        ("internvl2", '{"image": 2, "box": [[1, 2, 3, 4]]}',
         '{"image": 2, "box": ' + numbered(2, 1, 1, 2, 3, 4) + "}"),
        # The number of something else names none.
        ("qwen2_5_vl", "In this image: 1 dog at [20, 5, 40, 10]",
         "In this image: 1 dog at " + box(200, 100, 400, 200)),
        *((name, "1 2 3 4 or (1,2) or [1, 2, 3] or [1-2, 2, 3, 4]", None) for name in FAMILIES),
        *((name, "", None) for name in FAMILIES),
    ],
)  # fmt: skip
def test_boxes_are_brought_into_our_form(name, text, expected):
    (item,) = rows_of([file_row(question="Where is it in the second image?")])
    sizes = {"0.jpg": (200, 100), "1.jpg": (100, 50)}
    read = families.to_grammar(FAMILIES[name], text, item, sizes.__getitem__)
    assert read == (text if expected is None else expected)


IN_FIRST = numbered(1, 1, 100, 50, 200, 100)
UNREAD = numbered(0, 1, 20, 5, 40, 10).replace("(20,5),(40,10)", "[20, 5, 40, 10]")


@pytest.mark.parametrize(
    ("text", "box_of"),
    [
        *(
            (f'{{"{name}": 1, "bbox_2d": BOX}}', IN_FIRST)
            for name in ("target_image", "in_image", "imageIndex", "target-frame-id", "answer_img",
                         "selected_image", "predicted_image", "page", "view", "frame", "view_id",
                         "predictedImageIndex", "located_in_image", "图片编号", "图像")
        ),
        *(
            (f'{{"image": {value}, "bbox_2d": BOX}}', IN_FIRST)
            for value in (
                '"first"', '"1st"', '"#1"', "[1]", '["1"]', "1.0", '"the first image"',
                '"image_1.png"', '"Picture 1"', '"1st image"', '"no. 1"', '"one"', '"1 of 2"',
                '"A"', '"I"', '"Image I"', '"Picture A"', '"图1"', '"第一张图"', '"第一张"',
                '{"index": 1}', '{"image_id": "1", "width": 200}', '"the first one"', '"a.jpg"',
                '"bench/a.jpg"', '{"file": "a.jpg"}',
            )
        ),
        # Fields in the forms of Markdown and XML, in words, and in an ID of our own form.
        *(
            (form + " BOX", IN_FIRST)
            for form in (
                "Image: 1", "**Image:** 1", "**Image**: 1", "Image: **1**", "- `image`: 1 -",
                "Image: 1, box:", "Image: 1 (the yard)", "<image>1</image>",
                "<image_id>1</image_id>", "In image (1):", "image [1]:", "Image one:",
                "image number 1", "Image index 1:", "img 1:", "img_1", "1st img:",
                "It is in the first input image, at", "Image：1", "图1：", "图片 1:", "第一张图片:",
                "在第1张图中：", "Image A:", "In Image I:", "image (A)", "pic 1:", "pic #1",
                "view 1:", "Page: 1,", "photo # 1", "In the first view:",
            )
        ),
        ("<bbox_id>[1-3]</bbox_id> BOX", box(100, 50, 200, 100)),
        ("<bbox_id>[1-3]</bbox_id><|object_ref_start|>dog 2<|object_ref_end|> BOX",
         box(100, 50, 200, 100)),
        ("In image one, unlike in the second image: BOX", IN_FIRST),
        # A field of an object around it, before or behind; the nearest counts.
        ('{"image": 1, "found": {"kind": "dog", "boxes": [{"bbox_2d": BOX}]}}', IN_FIRST),
        ('{"found": [{"bbox_2d": BOX}], "image": 1}', IN_FIRST),
        ('{"image": 2, "found": [{"bbox_2d": BOX, "image": "first"}]}', IN_FIRST),
        ('{"image": 1, "found": [{"label": "as in image 2", "bbox_2d": BOX}]}', IN_FIRST),
        ('{"box": BOX, "size": {"w": 2}, "image": 1', IN_FIRST),
        # What names an image that isn't there is no box in the target image.
        *(
            (f'{{"image": {value}, "bbox_2d": BOX}}', UNREAD)
            for value in (
                7, "[1, 2]", "-1", "1.5", '"seventh"', '"3rd"', '{"index": 7}', '"seven"', "4711",
                # Nor what is about images, and isn't understood.
                '"left"', '"dog.jpg"', '"1.jpg"', '"the other image"', '"both"', '"Q"',
            )
        ),
        ('{"target_image": "left", "bbox_2d": BOX}', UNREAD),
        ('{"target_image": "the one with the yard", "bbox_2d": BOX}', UNREAD),
        ('{"my_image": 1, "bbox_2d": BOX}', UNREAD),
        ('{"1": {"bbox_2d": BOX}}', UNREAD),
        *(
            (f"In {words}: BOX", UNREAD.replace(grammar.format_id(0, 1), ""))
            for words in ("the left image", "the other picture", "both images", "Image X", "右图")
        ),
        ('{"target_image": 9, "found": [{"bbox_2d": BOX}]}', UNREAD),
        ("In the ninth image: BOX", UNREAD.replace(grammar.format_id(0, 1), "")),
        ("<bbox_id>[7-1]</bbox_id> BOX", UNREAD.replace(grammar.format_id(0, 1), "")),
        # Text that refers to no image.
        *(
            (f'{{{field}, "bbox_2d": BOX}}', box(200, 100, 400, 200))
            for field in (
                '"picture": "oil painting"', '"label": "photo: family"', '"image": "the garden"',
                '"photo": "2 dogs"',
                '"frame": "wooden, 1920"', '"image": ["kitchen"]', "image: garden",
                '"label": "picture: 2 dogs"', '"image": {"width": 640}', '"review": 1',
            )
        ),
        ("In the image one dog is at BOX", box(200, 100, 400, 200)),
        ("In this image two: BOX", box(200, 100, 400, 200)),
        ("<image>\n2 dogs: BOX", box(200, 100, 400, 200)),
        # These name none.
        *(
            (f'{{"{field}, "bbox_2d": BOX}}', box(200, 100, 400, 200))
            for field in (
                'image": null', 'image": ""', 'in_image": true', 'image_width": 640',
                'images": 2', 'label": "a dog in the image: brown"', 'source_image": 1',
            )
        ),
        ('{"image": BOX}', box(200, 100, 400, 200)),
        ('{"frame": {"bbox_2d": BOX}}', box(200, 100, 400, 200)),
    ],
)  # fmt: skip
def test_the_image_of_a_box_in_pixels(text, box_of):
    images = ["bench/a.jpg", "bench/1.jpg"]
    (item,) = rows_of([file_row(question="Where is it in the second image?") | {"images": images}])
    sizes = {"bench/a.jpg": (200, 100), "bench/1.jpg": (100, 50)}
    read = families.to_grammar(
        FAMILIES["qwen2_5_vl"], text.replace("BOX", "[20, 5, 40, 10]"), item, sizes.__getitem__
    )
    assert read == text.replace("BOX", box_of)
    (row,) = scoring.score([item], [read]).rows
    assert (row.box is None) == ("[20," in box_of)
    assert row.image == (1 if box_of in (IN_FIRST, box(100, 50, 200, 100)) else None)


def test_an_image_that_is_not_there_is_wrong_on_the_grid_too():
    (item,) = rows_of([file_row(question="Where is it in the second image?")])
    text = 'Unlike in image 2: {"image": 7, "box": [100, 200, 500, 600]}'
    (row,) = families.score(FAMILIES["qwen2_vl"], [item], [text]).rows
    assert row.hit and row.image is None


def test_reading_takes_time_in_proportion_to_the_text():
    """Reading in quadratic time takes minutes here, this tenths of a second."""
    (item,) = rows_of([file_row(question="Where is it?")])
    pieces = ["<box>", "<|box_start|>", "(1,", "[[1, ", "[1,2,3,", "1 ", " ", "(" * 9, "Image 1 "]
    pieces += ["9" * 50, "(1,2),(3,4)", "1.", "<box>1 2 3", "{", '{"image": 2, ', '"image": 2, ']
    pieces += ['{"bbox": [1,2,3,4], "image": 1}', '"bbox": [1,2,3,4], "image": 1 ', "}{[1,2,3,4]"]
    pieces += ['{"image": "x", ', '{"image": [', "image=the ", "{[1,2,3,4]", "image: 1, ", "#-"]
    pieces += [
        "<bbox_id>[1-1]</bbox_id>",
        "image (1",
        "image no. ",
        '{"image": {"index": ',
        "<image>",
    ]
    pieces += ["second to ", "second-to-last image ", "from the ", "'a': ", '"image 2": [']
    pieces += ["image 2: [1", "Image 2: {[1,2,3,4]", "[1,2,3,4] | image: 2\n", '"images": [2], ']
    pieces += ["[1,2,3,4] xywh [1,2,3,4] xyxy ", "x, y, ", "not xywh ", "box_2d is [1,2,3,4] "]
    pieces += [
        "Top-left: (1,2) ",
        "This box refers to image 1 ",
        "|-|-|\n",
        '"file": "',
        "filename=a/",
    ]
    pieces += ["image one ", '"image": "a b", ', "**Image:** ", "<bbox_id>[1-1]</bbox_id>[1,2,3,4]"]
    one_of_each = {family.numbers: family for family in FAMILIES.values()}
    for family in one_of_each.values():
        for piece in pieces:
            start = time.process_time()
            text = piece * (200_000 // len(piece))
            families.to_grammar(family, text, item, lambda path: (28, 28))
            assert time.process_time() - start < 20, piece


def test_a_family_with_pixels_needs_the_images(tmp_path):
    (item,), family = rows_of([file_row()]), FAMILIES["qwen2_5_vl"]
    with pytest.raises(ConfigError, match="--image_root"):
        families.score(family, [item], ["[1, 2, 3, 4]"])
    with pytest.raises(DataError, match="1.jpg"):
        families.score(family, [item], ["[1, 2, 3, 4]"], image_root=str(tmp_path))
    for n, size in enumerate([(300, 200), (100, 80)]):
        Image.new("RGB", size).save(tmp_path / f"{n}.jpg")
    # The second: 112 by 84 as the model gets it; the first, which is named: 308 by 196.
    texts = ["[11, 17, 56, 50]", "Image 1: [31, 39, 154, 118]", None]
    scores = families.score(family, [item] * 3, texts, image_root=str(tmp_path))
    assert [r.box for r in scores.rows] == [
        (0.098, 0.202, 0.5, 0.595),
        (0.101, 0.199, 0.5, 0.602),
        None,
    ]
    assert (scores.missing, [r.hit for r in scores.rows]) == (1, [True, True, False])
    assert image_size(tmp_path, "0.jpg") == (300, 200)
    Image.new("RGB", (300, 1)).save(tmp_path / "1.jpg")
    with pytest.raises(DataError, match="narrower than"):
        image_size(tmp_path, "1.jpg")


@pytest.mark.parametrize(
    ("form", "named"),
    [
        ('{{"image": {image}, "bbox_2d": [{box}]}}', True),
        ('{{"bbox_2d": [{box}], "label": "the dog in image {image}"}}', True),
        ("In image {image}: [{box}]", True),
        ("[{box}]", False),
    ],
)
def test_a_box_in_the_wrong_image_is_measured_there(form, named, tmp_path):
    """Images of several sizes: the right pixels are another place of the wrong image."""
    for n, size in enumerate([(280, 280), (840, 560)]):
        Image.new("RGB", size).save(tmp_path / f"{n}.jpg")
    (item,) = rows_of([file_row(question="Where is it in the second image?")])
    assert item.target_image == 2
    pixels = "84, 112, 420, 336"  # the answer, in the second image
    family = FAMILIES["qwen2_5_vl"]

    def score(image):
        text = form.format(image=image, box=pixels)
        return families.score(family, [item], [text], image_root=str(tmp_path)).rows[0]

    right, wrong = score(2), score(1)
    assert right.iou == pytest.approx(1) and (wrong.iou < 0.5) == named
    assert (right.image, wrong.image) == ((2, 1) if named else (None, None))


def test_thoughts_do_not_count_for_a_reasoning_family(benchmark):
    item = benchmark[0]
    good = "({},{}),({},{})".format(*answer_box(item))
    text = f"<think>Perhaps (1,2),(3,4), or not.</think><answer>{good}</answer>"
    family = FAMILIES["univg_r1"]
    answer = families.score(family, [item], [text], "answer")
    assert answer.rows[0].hit and answer.rows[0].format_ok
    assert not families.score(family, [item], [text], "authors").rows[0].hit
    assert grammar.parse_response(families.to_grammar(family, text, item), 2).format_ok
    assert np.isclose(answer.overall.mean_iou, 1, atol=0.02)
