"""The questions' words: several plain wordings for each task, those of the benchmark among them.

`{nth}` is replaced by words for the image to look in ("the second image"), `{box}` by a box with
its marks, `{name}` by a name between its marks, `{plain}`, `{other}` by names with an article.
"""

import numpy as np

from mirg_jax.grounding.grammar import OBJECT_END, OBJECT_START, ORDINALS, format_box

WORDINGS: dict[str, tuple[str, ...]] = {
    "common_object": (
        "These images share one object in common. Recognize and locate this object in {nth}.",
        "One kind of object is in all of the images. Find it and locate it in {nth}.",
        "What do all these images have in common? Locate that object in {nth}.",
    ),
    "diff": (
        "Compare these two images carefully and give me the coordinates of their difference in "
        "{nth}.",
        "One place has changed between the two images. Where is it in {nth}?",
        "Find the only difference of the two images and locate it in {nth}.",
    ),
    "view_diff": (
        "Compare these two images carefully and give me the coordinates of their real difference "
        "in {nth}.",
        "Apart from light and framing, one thing differs in the two images. Locate it in {nth}.",
        "The two images show the same scene in another light and view. Find what really changed "
        "and locate it in {nth}.",
    ),
    "object_tracking": (
        "These are a sequence of images containing moving objects. For the object in the first "
        "image at {box}, please locate it in {nth}.",
        "The images are frames of one scene. Follow the object at {box} of the first image and "
        "locate it in {nth}.",
        "Track the object that is at {box} in the first image, and find it in {nth}.",
    ),
    "multi_view": (
        "These images share one object in common (the object marked with red bounding box in the "
        "first image {box}). Recognize and locate this object in {nth}.",
        "The images are views of the same scene. Find the object that is marked in red in the "
        "first image ({box}) and locate it in {nth}.",
        "The first image has an object marked by a red box {box}. Where is the same object in "
        "{nth}?",
    ),
    "region": (
        "You are given a source image followed by its several regions. Please locate the {n}th "
        "region picture in the source image.",
        "The first image is a source image, the others were cut out of it. Locate region {n} in "
        "the source image.",
    ),
    "refer_grounding": (
        "Find and locate where does the object in image-1 locate in {nth}.",
        "The first image shows one object from close by. Locate the same object in {nth}.",
    ),
    "refer_kind": (
        "The first image shows one object. Locate the object of the same kind in {nth}.",
        "Image-1 is a close view of an object. Find another one of its kind in {nth}.",
    ),
    "refer_anywhere": (
        "One object is shown from close by, then several photos. Find the same object in them.",
        "An object is seen from close by at first, and again in one of the photos that follow. "
        "Locate it there.",
    ),
    "group_grounding": (
        "Please find the bounding box coordinates for the area described by: {name}.",
        "Give the bounding box of the region that this sentence refers to: {name}.",
        "Please provide the bounding box coordinate of the region this sentence describes: {name}.",
        "Which image shows {name}? Locate it there.",
    ),
    "correspondence": (
        "You are now presented with two objects. For the area marked by the red bounding box in "
        "the first image, identify and locate the corresponding area in {nth} that serves a "
        "similar function or shares a similar meaning.",
        "An object of the first image is marked by a red box. Find its counterpart and locate it "
        "in {nth}.",
    ),
    "reasoning_attribute": (
        "Image-1 shows an object. Which object has the same {kind}? Find it in {nth}.",
        "Find the object on {nth} that shares the same {kind} of the object in image-1.",
    ),
    "reasoning_order": (
        "Image-1 shows an object. Several of its kind are in the other image. Locate the "
        "{most} one in {nth}.",
        "Look at the object of image-1. Of the objects of its kind, locate the {most} one in "
        "{nth}.",
    ),
    "reasoning_company": (
        "Several images show {plain}, and one of them shows {other} too. Locate {plain} there.",
        "Locate {plain}, in the only image that shows {other} as well.",
    ),
}


def ask(
    rng: np.random.Generator,
    wording: str,
    *,
    image: int = 0,
    box: tuple[int, int, int, int] | None = None,
    name: str = "",
    **words: str | int,
) -> str:
    """Returns a question in one of the wordings, chosen at random.

    Args:
      rng: random number generator.
      wording: a key of `WORDINGS`.
      image: the image to look in, from 1, where the question says it.
      box: a box on the grid.
      name: a name to put between its marks.
      words: what else the wording has in braces.
    """
    texts = WORDINGS[wording]
    text = texts[int(rng.integers(len(texts)))]
    return text.format(
        nth=_nth(rng, image) if image else "",
        box=format_box(box) if box else "",
        name=f"{OBJECT_START}{name}{OBJECT_END}",
        **words,
    )


def _nth(rng: np.random.Generator, image: int) -> str:
    """Returns words for an image: the benchmark's "2th image" is among them."""
    choices = (f"the {ORDINALS[image - 1]} image", f"the {image}th image", f"image-{image}")
    return choices[int(rng.integers(len(choices)))]
