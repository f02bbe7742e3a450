"""Which image a row's words mean: those of the answer, and of the question but for its captions."""

import functools

import pytest
from data_rows import BOX, MIG_BENCH, chat, read_content, said

from mirg_jax.data.examples import read_examples, write_mgrounding
from mirg_jax.data.named_images import find_asked_image

ASKED = "Where is the dog?"
NOT_SAID = "which of the 2 images a box is in is not said"
CAPTIONED = [
    "Image (1): <image>\nImage (2): <image>\n{}",
    "img 1: <image> img 2: <image> {}",
    "Image one: <image>\nImage two: <image>\n{}",
    "Picture 1: <image>\nPicture 2: <image>\n{}",
    "Image-1: <image>\nImage-2: <image>\n{}",
    "image 1: <image> image 2: <image> {}",
    "Image 1\n<image>\nImage 2\n<image>\n{}",
    "Image 1 (morning): <image>\nImage 2 (evening): <image>\n{}",
    "**Image 1**: <image>\n[Image 2] <image>\n{}",
    "The first image: <image>, the second image: <image>. {}",
    "This is image 1. <image> This is image 2. <image> {}",
    "<image> (image 1)\n<image> (image 2)\n{}",
    "<image>Image-1<image>Image-2\n{}",
    "<image_1>\n<image_2>\n{}",
    "<image 1><image 2>{}",
    "<|image_1|><|image_2|>{}",
    "{} Image 1: <image> Image 2: <image>",
    "{}\nImage 1: <image>\nImage 2: <image>",
]


@pytest.fixture
def read(tmp_path):
    return functools.partial(read_content, tmp_path)


@pytest.mark.parametrize("form", CAPTIONED)
def test_a_caption_names_no_target(read, form):
    question = form.format(ASKED)
    assert find_asked_image(question, 2).image is None
    row = {"id": "a", "images": ["1.jpg", "2.jpg"], "conversations": said(BOX, question)}
    diff = row | {"type": "diff_train"}  # the same box in both images
    eval_row = MIG_BENCH | {"question": question, "task": "region"}
    named = row | {"conversations": said(f"It's in the first image. {BOX}", question)}
    examples, rejected = read([row, diff, named])
    assert [example.targets[0].image for example in examples] == [None, 1]
    assert NOT_SAID in rejected[0].reason and len(rejected) == 1
    assert NOT_SAID in read([eval_row])[1][0].reason
    assert read([eval_row | {"task": "diff"}])[0][0].targets[0].image is None


@pytest.mark.parametrize("form", CAPTIONED[:-2])
def test_a_question_behind_captions_names_its_image(form):
    question = form.format("See the first image. Where in the second image?")
    assert find_asked_image(question, 2).image == 2


@pytest.mark.parametrize(
    "question, image",
    [
        ("<image>\n<image>\nImage-1 shows a dog. Where is it in image-2?", 2),
        ("<image><image>In the first image, where is the dog?", 1),
        ("Where is the dog in the second image?\n<image>\n<image>", 2),
        ("Locate the dog in image 1.\n<image><image>", 1),
        ("Locate the dog in the first image: <image><image>", None),
        ("Find the dog of the first image <image> in the second image <image>.", None),
        ("Find the dog of <image_1> in <image_2>.", None),
        ("Where is the dog in the second image?", 2),
        ("Unlike in the second image: where in the second-to-last image?", 1),
        ("<image><image>Where is the dog in the next to last picture?", 1),
        ("Where is the dog in the second image from the end?", 1),
        ("<image>, image (2): <image> Where is the dog of the last image in image (1)?", 1),
        ("Where is it in the third-to-last image?", None),
        ("It moves from the first to the last image. Where is it then?", None),
    ],
)
def test_where_a_question_names_its_image(question, image):
    assert find_asked_image(question, 2).image == image


@pytest.mark.parametrize(
    "question, called",
    [
        ("Image 0: <image>\nImage 1: <image>\n", "image 2 of the conversation is called 'Image 1'"),
        ("Image 2: <image>\nImage 1: <image>\n", "image 1 of the conversation is called 'Image 2'"),
        ("The second picture: <image> <image>\n", "called 'second picture'"),
        ("Image (2): <image>\nimg 1: <image>\n", "image 1 of the conversation is called 'Image (2"),
        ("Image 1: <image>\nImage 1: <image>\n", "image 2 of the conversation is called 'Image 1'"),
        ("Image 2\n<image>\nImage 3\n<image>\n", "image 1 of the conversation is called 'Image 2'"),
        (
            "<image> (image 0)\n<image> (image 1)\n",
            "image 2 of the conversation is called 'image 1'",
        ),
        ("<image_0><image_1>", "number them from 1"),
    ],
)
def test_captions_that_number_images_otherwise(read, question, called):
    answer = f"It's in image 1. {BOX}"
    row = {"id": "a", "images": ["1.jpg", "2.jpg"], "conversations": said(answer, question + ASKED)}
    _, (bad,) = read([row])
    assert called in bad.reason


def test_captions_that_are_no_numbers_of_images(read):
    asked = ("user", "frame 120: <image>\nframe 240: <image>\nWhere is the dog?")
    (example,), _ = read([chat(asked, ("assistant", f"In the second image: {BOX}"))])
    assert example.targets[0].image == 2
    _, (bad,) = read([chat(asked, ("assistant", f"In frame 240: {BOX}"))])
    assert "image 240, which is not there" in bad.reason


def test_a_row_whose_question_is_unclear_is_left_out_with_the_reason(read):
    question = "Find the dog in image 1 next to the cat in image 2."
    row = {"id": "a", "images": ["1.jpg", "2.jpg"], "conversations": said(BOX, question)}
    named = row | {"conversations": said(f"It's in the first image. {BOX}", question)}
    examples, (bad,) = read([row, named])
    assert examples[0].targets[0].image == 1
    assert NOT_SAID in bad.reason and '"image 1", "image 2", and not clearly' in bad.reason
    (bad,) = read([MIG_BENCH | {"question": question, "task": "region", "additional_info": ""}])[1]
    assert "not clearly the one to look in" in bad.reason


def test_captions_go_on_in_later_turns(read):
    asked = [("user", f"Image {n}: <image> {ASKED}") for n in (1, 2)]
    answered = [("assistant", f"In image {n}: {BOX}") for n in (1, 2)]
    examples, rejected = read([chat(asked[0], answered[0], asked[1], answered[1])])
    assert [example.targets[0].image for example in examples] == [1, 2] and rejected == []
    _, (bad,) = read([chat(asked[0], answered[0], asked[0], answered[0])])
    assert bad.id.endswith("#2") and "image 2 of the conversation is called 'Image 1'" in bad.reason


BEFORE_AND_BEHIND = "image 1 is named before a box and 'image 2' behind it"
SECOND = "<|box_start|>(500,20),(600,400)<|box_end|>"


@pytest.mark.parametrize(
    "answer, images",
    [
        (f"{BOX} in the second image.", [2]),
        (f"{BOX} (image 2)", [2]),
        (f"{BOX} in the second image and {SECOND} in the first image", [2, 1]),
        (f"{BOX}, {SECOND} in image 1", "name each box's image before it"),
        (f"{BOX} Image-2: {SECOND}", "name each box's image before it"),
        (f"{BOX} in the ninth image", "name each box's image before it"),
        (f"In image 2 {BOX}. It is as in the first image.", [2]),
        (f"{BOX} and so is {SECOND}", NOT_SAID),
        # The place behind a box, where the words before are of another image, or it is unclear.
        (f"The dog in image 1 is at {BOX} in image 2", [2]),
        (f"The dog of image 1 can be seen at {BOX} in the second image. Well.", [2]),
        (f"The dog in image 1 is at {BOX} in image 2. The cat is at {SECOND}.", [2, 2]),
        (f"The dog in image 1 is at {BOX} in image 2 and a cat at {SECOND}", BEFORE_AND_BEHIND),
        (f"In image 1 the dog is at {BOX} in image 2.", BEFORE_AND_BEHIND),
        (f"In image 1: {BOX} (image 2)", BEFORE_AND_BEHIND),
        (f"The dog in image 1 is at {BOX}, in image 2.", BEFORE_AND_BEHIND),
        (f"<bbox_id>[1-1]</bbox_id>{BOX} in image 2", BEFORE_AND_BEHIND),
        (f"In image 1 the dog is at {BOX}, in image 2 there is none.", [1]),
        (f"In image 1 at {BOX} in image 2 at {SECOND}", [1, 2]),
        (f"In image 1: {BOX} In image 2: {SECOND}", [1, 2]),
        (f"<bbox_id>[2-1]</bbox_id>{BOX}", [2]),
        # Our grammar would take these for the last and the first image.
        (f"In the second-to-last image: {BOX}", "is not understood as one of 2 images"),
        (f"In the first image from the end: {BOX}", "is not understood as one of 2 images"),
        (f"{BOX} in the next to last image", "is not understood as one of 2 images"),
        # Nor does it, and so rewards, read these.
        *(
            (f"In {words}: {BOX}", "is not understood as one of 2 images")
            for words in ("Image B", "Image II", "pic 2", "view 2", "the left image", "图2",
                          "图片 2", "第二张图", "page 2", "the right-hand picture")
        ),
    ],
)  # fmt: skip
def test_images_named_behind_boxes(read, answer, images):
    examples, rejected = read([chat(("user", ASKED), ("assistant", answer))])
    if isinstance(images, str):
        assert examples == [] and images in rejected[0].reason
    else:
        assert [target.image for target in examples[0].targets] == images


def test_rows_with_captions_are_written_so_that_they_are_read_back(read, tmp_path):
    answer = f"It's in the first image. {BOX}"
    rows = [chat(("user", form.format(ASKED)), ("assistant", answer)) for form in CAPTIONED]
    examples, rejected = read(rows)
    assert rejected == []
    write_mgrounding(tmp_path / "written.json", examples)
    assert read_examples(tmp_path / "written.json") == (examples, [])
