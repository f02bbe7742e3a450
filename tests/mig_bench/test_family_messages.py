"""The messages and pictures that each family of models is asked with on MIG-Bench."""

import re

import pytest
from bench_rows import file_row, rows_of
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from mirg_jax.mig_bench import families, prompts
from mirg_jax.mig_bench.families import FAMILIES

# Prompts ------------------------------------------------------------------------------------------

BOXED = (
    "For the object in the first image marked with red bounding box"
    "(<|box_start|>(58,305),(495,1000)<|box_end|>), please locate it in the 2th image. "
)
NAMED = "Find the area described by: <|object_ref_start|>a dog<|object_ref_end|>."
LISTED = BOXED.replace("<|box_start|>(58,305),(495,1000)<|box_end|>", "<box>[{}]</box>")
PLAIN = LISTED.replace("<box>", "").replace("</box>", "")
UNBOXED = BOXED.replace("(<|box_start|>(58,305),(495,1000)<|box_end|>)", "")
REF = "Find the area described by: <ref>a dog</ref>."
NO_WORDS = "Don't generate addtional words."
MENDED = "Don't generate additional words."
THINK = (
    "First output the thinking process in <think> </think> tags and then output the bounding box"
)
THINK += " in <answer> </answer> tags."

# The message with "#" for an image, for BOXED and NAMED: by hand from the published code.
AUTHORS = {
    "mirg": (f"Image-1: #Image-2: #{BOXED.strip()}", f"Image-1: #Image-2: #{NAMED}"),
    "qwen2_vl": tuple(
        f"##{question}Format:<|box_start|>(x1,y1),(x2,y2)<|box_start|>. {NO_WORDS}"
        for question in (BOXED, NAMED)
    ),
    "univg_r1": (f"##{BOXED} {THINK}", f"##{NAMED} {THINK}"),
    "internvl2": tuple(
        f"Image-1: #\nImage-2: #\n{question}Format:<box>[[x1,y1,x2,y2]]</box>. {NO_WORDS}"
        for question in (LISTED.format("58,305,495,1000"), REF)
    ),
    "minicpm_v": tuple(
        f"##{question}Format:<box>x1 y1 x2 y2</box>. {NO_WORDS}"
        for question in (LISTED.format("58,305,495,1000"), REF)
    ),
    "mantis": tuple(
        f"##{question} Format:<box>[x1, y1, x2, y2]</box>. {NO_WORDS}"
        for question in (LISTED.format("0.58,0.305,0.495,0.1000"), REF)  # 58 is 0.58: theirs
    ),
    "llava_onevision": tuple(
        f"image1:#\nimage2:#\n{question} Format:<box>[x1, y1, x2, y2]</box>. {NO_WORDS}"
        for question in (UNBOXED, REF)
    ),
    "mplug_owl3": tuple(
        f"Image-1:#\nImage-2:#\n{question} Format:<box>[x1, y1, x2, y2]</box>. {NO_WORDS}"
        for question in (UNBOXED, REF)
    ),
}
for _name in ("migician", "qwen2_5_vl", "qwen3_vl"):
    AUTHORS[_name] = AUTHORS["qwen2_vl"]

_QWEN = f"Format: <|box_start|>(x1,y1),(x2,y2)<|box_end|>. {MENDED}"
_JSON = (
    'Output its bbox coordinates in JSON format: [{"bbox_2d": [x1, y1, x2, y2], "label": "name"}].'
)
_LIST = f"Format: <box>[x1, y1, x2, y2]</box>. {MENDED}"
ANSWER = {
    "mirg": AUTHORS["mirg"],
    "qwen2_vl": (f"##{BOXED}{_QWEN}", f"##{NAMED} {_QWEN}"),
    "qwen2_5_vl": (
        # In an image of 840 by 420 pixels: 58 of 1000 are 48.72 of 840.
        f"##{PLAIN.format('49, 128, 416, 420')}{_JSON}",
        f"##{NAMED} {_JSON}",
    ),
    "qwen3_vl": (
        f"##{PLAIN.format('58, 305, 495, 1000')}{_JSON}",
        f"##{NAMED} {_JSON}",
    ),
    "migician": (f"##{BOXED}{_QWEN}", f"##{NAMED} {_QWEN}"),
    "univg_r1": (f"##{BOXED}{THINK}", f"##{NAMED} {THINK}"),
    "mantis": (f"##{LISTED.format('0.058,0.305,0.495,1')}{_LIST}", f"##{REF} {_LIST}"),
    "llava_onevision": (
        f"image1:#\nimage2:#\n{UNBOXED}{_LIST}",
        f"image1:#\nimage2:#\n{REF} {_LIST}",
    ),
}


def message(name, question, protocol):
    (item,) = rows_of([file_row(question=question)])
    sizes = {"0.jpg": (840, 420), "1.jpg": (28, 28)}
    parts = prompts.message(FAMILIES[name], item, protocol, sizes.__getitem__)
    assert [value for kind, value in parts if kind == "image"] == [*item.images]
    assert all(a != b or a == "image" for (a, _), (b, _) in zip(parts, parts[1:], strict=False))
    return "".join(value if kind == "text" else "#" for kind, value in parts)


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_are_the_authors_to_the_letter(name):
    for question, expected in zip((BOXED, NAMED), AUTHORS[name], strict=True):
        assert message(name, question, "authors").rstrip() == expected


@pytest.mark.parametrize("name", ANSWER)
def test_prompts_without_the_authors_slips(name):
    for question, expected in zip((BOXED, NAMED), ANSWER[name], strict=True):
        assert message(name, question, "answer") == expected


def test_every_question_of_the_benchmark_is_asked(benchmark):
    for name, family in FAMILIES.items():
        for item in benchmark:
            for protocol in ("authors", "answer"):
                *_, (kind, text) = prompts.message(family, item, protocol, lambda _: (640, 480))
                assert kind == "text"
                if family.question_box in ("list", "fractions", "removed"):
                    assert "<|" not in text, name
                if family.question_box == "removed":
                    assert "(<" not in text and not re.search(r"\d,\d", text)


# Pictures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(640, 480), (500, 1200), (97, 31), (2000, 20)])
@pytest.mark.parametrize("limit", [200_000, families.MAX_PIXELS])
def test_pixels_are_those_of_the_image_as_the_processor_makes_it(size, limit):
    image = Image.new("RGB", size)
    height, width = smart_resize(
        size[1], size[0], factor=28, min_pixels=families.MIN_PIXELS, max_pixels=limit
    )
    sent = prompts.picture(FAMILIES["qwen2_5_vl"], image, "answer", limit)
    assert sent.size == families.size_given(size, limit) == (width, height)
    # The processor leaves what is sent as it is.
    assert smart_resize(height, width, 28, families.MIN_PIXELS, limit) == (height, width)
    other = prompts.picture(FAMILIES["qwen2_vl"], image, "answer", limit)
    assert (other is image) == (size[0] * size[1] <= limit)
    assert other.width * other.height <= limit


def test_authors_make_images_smaller_for_minicpm():
    family = FAMILIES["minicpm_v"]
    for size, expected in (
        ((800, 333), (500, 208)),
        ((333, 800), (208, 500)),
        ((500, 9), (500, 9)),
    ):
        image = Image.new("RGB", size)
        assert prompts.picture(family, image, "authors", families.MAX_PIXELS).size == expected
        assert prompts.picture(family, image, "answer", families.MAX_PIXELS).size == size
