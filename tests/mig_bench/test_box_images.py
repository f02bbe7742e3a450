"""Which image each box of a response is in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirg_jax.grounding.image_words import OTHER, UNCLEAR
from mirg_jax.mig_bench.box_images import find_boxes


@pytest.mark.parametrize(
    "text, images",
    [
        # Keys are images, and an empty list says nothing.
        ('{"Image 2": [BOX], "Image 1": []}', [2]),
        ('{"Image 1": [], "Image 2": [BOX]}', [2]),
        ('{"Image 1": [BOX, BOX], "Image 2": [BOX]}', [1, 1, 2]),
        ("{'image_2': {'bbox_2d': BOX}, 'image_1': null}", [2]),
        ('{"second image": [{"boxes": [{"bbox_2d": BOX}]}], "first image": []}', [2]),
        ('{"b.jpg": [BOX], "a.jpg": []}', [2]),
        ('{"image_0": [BOX], "image_1": []}', [1]),
        ('{"image 7": [BOX], "image 1": []}', [OTHER]),
        ("Image 2: [BOX], Image 1: []", [2]),
        # A box's own key or heading counts, not what is said behind it.
        ('{"image_2_bbox": BOX, "label": "as in image 1"}', [2]),
        ('{"Image 2": BOX, "seen_in": "image 1"}', [2]),
        ('{"Image 2": {"bbox_2d": BOX, "label": "as in image 1"}}', [2]),
        ('Image 2: {"bbox_2d": BOX, "label": "as in image 1"}', [2]),
        ('**Image 2**:\n```json\n[{"bbox_2d": BOX, "label": "as in image 1"}, '
         '{"bbox_2d": BOX, "label": "as in image 1"}]', [2, 2]),
        ('{"Image 2": [{"image": 1, "bbox_2d": BOX}]}', [1]),
        # Other keys than the box's say nothing of it.
        ('{"image 1 shows": "a yard", "bbox_2d": BOX, "label": "dog of image 2"}', [2]),
        ('Image 1: [BOX]; and the second image has {"bbox_2d": BOX}', [1, 2]),
        # Fields behind boxes, but not headings of the next box.
        ("BOX | image: 2", [2]),
        ("BOX | image: 2\nBOX | image: 1\nBOX | image: 2", [2, 1, 2]),
        ("bbox: BOX\nlabel: dog\nimage: 2", [2]),
        ("BOX (image: 2)", [2]),
        ("<box>BOX</box><image>2</image>", [2]),
        ('"bbox_2d": BOX, "image": 2', [2]),
        ("BOX\nImage: 2\nBOX", [None, 2]),
        # The first words behind a box.
        ("BOX in image 2 and not in image 1", [2]),
        ("BOX in image 2 and in image 1 BOX", [2, 1]),
        ("BOX in image 2\nImage: 1 BOX", [2, 1]),
        # Lists of one image.
        ('{"images": [2], "bbox_2d": BOX}', [2]),
        ('{"bbox_2d": BOX, "image_ids": ["2"]}', [2]),
        ('{"image_indices": [1], "bbox_2d": BOX}, {"image_indices": [0], "bbox_2d": BOX}', [2, 1]),
        ('{"images": ["b.jpg"], "bbox_2d": BOX}', [2]),
        ('{"images": [1, 2], "bbox_2d": BOX}', [None]),
        ('{"images": ["a.jpg", "b.jpg"], "bbox_2d": BOX}', [None]),
        # From the end, of three images; and words that count from 0.
        ("In the second-to-last image: BOX", [2]),
        ("BOX in the second image from the end", [2]),
        ('{"image": "second to last", "bbox_2d": BOX}', [2]),
        ('{"image": "the third-to-last image", "bbox_2d": BOX}', [1]),
        ('{"image": "fourth to last", "bbox_2d": BOX}', [OTHER]),
        ("In image 0: BOX, in image 1: BOX", [1, 2]),
        # Images count from 0 by what an answer says of its boxes, not by what it denies.
        ("There is no image 0. In image 1: BOX", [1]),
        ("In image 1: BOX (image 0 is not used)", [1]),
        ("It isn't in image 0. In image 2: BOX", [2]),
        ("image 0 does not show it, image 1 does: BOX", [1]),
        ("Unlike image 0, it is image 2 that has it: BOX", [2]),
        ('{"image": 1, "bbox_2d": BOX, "note": "without image 0"}', [1]),
        ("Image 0: no dog.\nImage 1: BOX", [2]),
        ('{"image_0": [], "image_1": [BOX]}', [2]),
        ("BOX in image 0", [1]),
        ("It is not in image 1 but in image 2: BOX", [2]),
        ("In image 2, rather than in image 1: BOX", [2]),
        # Numbers that are keys may count objects.
        ('{"2": {"bbox_2d": BOX}}', [2]),
        ('{"1": [], "2": [BOX]}', [2]),
        ('{"0": null, "1": {"bbox_2d": BOX}}', [2]),
        ('{"1": BOX, "2": BOX}', [UNCLEAR, UNCLEAR]),
        ('{"1": {"image": 2, "bbox_2d": BOX}}', [2]),
        # Tables.
        ("| image | box |\n|---|---|\n| 1 | BOX |\n| 3 | BOX |", [1, 3]),
        ("| Box | Dog | Image # |\n|:--|--|--:|\n| BOX | a | 3 |\n| BOX | b | Image 1 |", [3, 1]),
        ("Image 1 is a yard.\n\nimage_id | bbox\n--- | ---\n**2** | `BOX`\n\nBOX", [2, 2]),
        ("| object | box |\n|---|---|\n| 2 | BOX |", [None]),
        ("| image | box |\n|---|---|\n| the yard | BOX |", [UNCLEAR]),
        ("| 图片 | 坐标 |\n|---|---|\n| 图2 | BOX |", [2]),
        ("| frame | box |\n|---|---|\n| 0 | BOX |\n| 1 | BOX |", [1, 2]),
        # Labels, other languages, and words that aren't understood.
        ("In Image B, not in Image A: BOX", [2]),
        ("Image II: BOX", [2]),
        ("In Image H: BOX", [OTHER]),
        ("In the image A dog is at BOX", [None]),
        ("In the picture I see a dog at BOX", [None]),
        ("在图2中：BOX", [2]),
        ("最后一张图：BOX", [3]),
        ("图中2只狗：BOX", [None]),
        ("BOX（图2）", [2]),
        ("It is in the left image: BOX", [UNCLEAR]),
        ("It is in the left image, image 2: BOX", [2]),
        ("BOX in the other image", [UNCLEAR]),
        ('{"image": "left", "bbox_2d": BOX, "image_index": 1}', [1]),
        ("In image 2: BOX and in another image BOX", [2, UNCLEAR]),
        # Boxes under names, in objects with their image.
        ('{"image": 2, "x1": 20, "y1": 5, "x2": 40, "y2": 10}', [2]),
        ('{"Image 3": {"left": 20, "top": 5, "width": 20, "height": 5}}', [3]),
        ('{"image_ids": [1, 2, 3, 4], "found": {"bbox": BOX, "image": 3}}', [3]),
        ("The images (1, 2, 3, 4) show it; image 2 has BOX", [2]),
        # References to another image than the box's.
        ("In image 2, the dog that was marked in image 1 is at BOX.", [2]),
        ("The dog marked in image 1 is found at BOX in image 3.", [3]),
        ("In image 2 I see the same dog as in image 1. Its box is BOX.", [2]),
        ("Image 3 shows the dog of image 1.</think><answer>BOX", [3]),
        ("The dog of image 2: BOX", [2]),
        ("The dog from the first image is at BOX of the third.", [UNCLEAR]),
        ('{"bbox_2d": BOX, "label": "same dog as in image 1"}', [UNCLEAR]),
        ('{"bbox_2d": BOX, "label": "the object marked in the first image"}', [UNCLEAR]),
        ('{"bbox_2d": BOX, "label": "the dog of image 1 in image 2"}', [2]),
        ('{"bbox_2d": BOX, "label": "second picture on the wall"}', [None]),
        ("Box in image 2: BOX. It corresponds to BOX in image 1.", [2, 1]),
        ("In image 2, the mug shown in image 1 is at BOX.", [UNCLEAR]),
        ("The mug is found in image 2 (see image 1): BOX", [2]),
        ("The mug in image 1 can be seen at BOX in image 2.", [UNCLEAR]),
        ("I found the mug in image 2; there is no mug in image 3. BOX", [2]),
        ("In image 2 there is a mug that is not present in image 1. BOX", [2]),
        ("Target image: 2\nReference image: 1\nBox: BOX", [2]),
        ("In the first image it is blue, in the second it is at BOX.", [UNCLEAR]),
        ("Image 1 shows it. Image 2 is a kitchen. Its box is BOX", [UNCLEAR]),
        ("The mug in image 1: BOX (in image 2)", [UNCLEAR]),
        # A column for each image, and a list by images.
        ("| object | Image 1 | Image 2 |\n|---|---|---|\n| dog | BOX | BOX |", [1, 2]),
        ("Image 1 | Image 2 | Image 3\n--- | --- | ---\n- | BOX | -", [2]),
        ("[null, BOX, null]", [UNCLEAR]),
        ('{"boxes": [[], BOX]}', [UNCLEAR]),
        # Behind the only box.
        ("BOX\nThe box is in the second image.", [2]),
        ("BOX. It is in the second image rather than in the third image.", [2]),
        ("Box: BOX\n\nLocated in: Image 2", [2]),
        ("BOX. It matches the object marked in image 1.", [None]),
        ("BOX. It is in image 1, and it is in image 2.", [UNCLEAR]),
        # Other names.
        ("Fig. 2: BOX", [2]),
        ("Img. 3: BOX", [3]),
        ("image_2_bbox = BOX", [2]),
        ('{"bbox_image_2": BOX}', [2]),
        ('{"image": "b", "bbox_2d": BOX}', [2]),
        ('{"image": "./b.jpg", "bbox_2d": BOX}', [2]),
        ("The matching image is number 2. Box: BOX", [UNCLEAR]),
        ("It is in the second one: BOX", [UNCLEAR]),
        # Names of files.
        ('{"file_name": "b.jpg", "bbox_2d": BOX}', [2]),
        ('{"filename": "photos/c.jpg", "bbox_2d": BOX}, {"filename": "a", "bbox_2d": BOX}', [3, 1]),
        ('{"bbox_2d": BOX, "fileName": "image_2.png"}', [2]),
        ("file_name: b.jpg\nbbox: BOX", [2]),
        ('{"file_name": "image_0.png", "bbox_2d": BOX}', [1]),
        ('{"file_name": "image_9.png", "bbox_2d": BOX}', [OTHER]),
        ('{"file_name": "000000391895.jpg", "bbox_2d": BOX}', [UNCLEAR]),
        ('{"source_file": "a.jpg", "bbox_2d": BOX}', [None]),
        ('{"images": [{"file_name": "b.jpg", "boxes": [BOX]}, {"file_name": "a.jpg"}]}', [2]),
        # A sentence behind a box that is about the box.
        ("BOX\nThis box refers to image 2.", [2]),
        ("BOX\n\nThe coordinates are relative to the second image.", [2]),
        ("BOX. This bounding box belongs to image 9", [OTHER]),
        ("BOX\nThis box refers to image 1.\nBOX\nThis box refers to image 2.", [1, 2]),
        ("BOX\nThis box refers to image 1 or image 2.", [UNCLEAR]),
        ("BOX\nThis box does not refer to image 2.", [None]),
        ("In image 1: BOX\nThis box refers to image 2.", [UNCLEAR]),
        ("In image 2: BOX. It is in image 1 too.", [2]),
        ("BOX. It is in image 1 or image 2.", [UNCLEAR]),
        ("BOX. It is not visible in image 1.", [None]),
        ("BOX. The dog is missing in image 1, it is in image 2.", [2]),
        # Tables with a short rule, and with a row for each field.
        ("|image|box|\n|-|-|\n|2|BOX|", [2]),
        ("| Field | Value |\n|---|---|\n| **Image** | second |\n| Box | BOX |", [2]),
        ("| Field | Value |\n|-|-|\n| Box | BOX |\n| Image index | 2 |", [2]),
        ("| | |\n|-|-|\n| Image | 1 |\n| Box | BOX |\n| Image | 2 |\n| Box | BOX |", [1, 2]),
        ("| Item | Box |\n|-|-|\n| 2 | BOX |", [None]),
        # Names of keys in other cases.
        ('{"firstImage": [], "secondImage": [BOX]}', [2]),
        ('{"first_image": BOX, "third-image": BOX}', [1, 3]),
        ('{"image": "secondImage", "bbox_2d": BOX}', [2]),
        ('{"secondImageDescription": "a yard", "bbox_2d": BOX}', [None]),
    ],
)  # fmt: skip
def test_the_image_of_each_box(text, images):
    found = find_boxes(text.replace("BOX", "[20, 5, 40, 10]"), ["a.jpg", "b.jpg", "c.jpg"])
    assert [each.image for each in found] == images


NAMES = [
    lambda n: f"In image {n}:",
    lambda n: f"Image-{n} has it at",
    lambda n: f"**Picture {n}**:",
    lambda n: f'{{"image": {n}, "bbox_2d":',
    lambda n: f'{{"selected_image": "{n}", "bbox_2d":',
    lambda n: f"Image {'ABC'[n - 1]}:",
    lambda n: f"第{'一二三'[n - 1]}张图：",
    lambda n: f"| image | box |\n| --- | --- |\n| {n} |",
    lambda n: f"There is no image 0. Photo #{n}:",
]
BOXES = [
    "[{}, {}, {}, {}]",
    '"{},{},{},{}"',
    "[[{}, {}], [{}, {}]]",
    '{{"x1": {}, "y1": {}, "x2": {}, "y2": {}}}',
    '{{"xmin": "{}", "ymin": "{}", "xmax": "{}", "ymax": "{}"}}',
    "<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>",
    "left={}, top={}, right={}, bottom={}",
    "<|box_start|>({},{}),({},{})<|box_end|>",
]
side = st.integers(0, 999)


@given(st.sampled_from(NAMES), st.integers(1, 3), st.sampled_from(BOXES), st.tuples(*[side] * 4))
def test_every_name_with_every_form_of_a_box(name, image, form, corners):
    (found,) = find_boxes(f"{name(image)} {form.format(*corners)}", ["a.jpg", "b.jpg", "c.jpg"])
    assert (found.corners, found.image) == (corners, image)


@given(st.text(alphabet='{}[]"|: 0123,imagebox\n-', max_size=300))
def test_any_text_is_read(text):
    for found in find_boxes(text, ["a.jpg", "b.jpg"]):
        assert found.image in (None, UNCLEAR, OTHER, 1, 2) and len(found.corners) == 4
        assert 0 <= found.start < found.end <= len(text)
