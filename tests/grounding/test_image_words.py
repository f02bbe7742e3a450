"""Words that name an image, beyond those of our own grammar, which they don't change."""

import itertools

import pytest

from mirg_jax.grounding.grammar import find_image_index
from mirg_jax.grounding.image_words import OTHER, find_image


@pytest.mark.parametrize(
    "words, image",
    [
        ("the second image", 2),
        ("image (2), image [3]", 3),
        ("img 2", 2),
        ("image number 2", 2),
        ("picture no. #2", 2),
        ("image two: a dog", 2),
        ("the image two dogs are in", None),
        ("the 2nd input image", 2),
        ("the source image", 1),
        ("image 7", OTHER),
        ("the ninth image", OTHER),
        ("image 0", None),
        ("imagery 2", None),
        # From the end.
        ("the second-to-last image", 3),
        ("the second to last picture", 3),
        ("the 3rd to the last image", 2),
        ("the second last frame", 3),
        ("the next-to-last given image", 3),
        ("the third image from the end", 2),
        ("the last image", 4),
        ("the last image but one", 3),
        ("the last but two image", 2),
        ("the penultimate image", 3),
        ("the antepenultimate photo", 2),
        ("the fifth-to-last image", OTHER),
        ("from the second to the last image", 4),
        ("between image 2 and the last image", 4),
    ],
)
def test_words(words, image):
    assert find_image(words, 4) == image
    assert find_image(f"In {words}, as I said", 4) == image


def test_the_grammars_words_mean_the_same_here():
    nouns = ("image", "Picture", "photo", "frame", "images", "img")
    ordinals = ("first", "2nd", "3th", "last", "final", "source", "twelfth", "other")
    texts = [f"the {word} {noun}," for word, noun in itertools.product(ordinals, nouns)]
    texts += [f"{noun}{gap}{n}" for noun in nouns for gap in ("", "-", " #", "_") for n in (1, 12)]
    for text, num_images in itertools.product(texts, (1, 3, 12)):
        if read := find_image_index(text, num_images):
            assert find_image(text, num_images) == read
    assert find_image_index("in the second-to-last image", 3) == 3  # what rewards read stays


def test_images_counted_from_0():
    assert find_image("image 0", 2, first=0) == 1
    assert find_image("image 1", 2, first=0) == 2
    assert find_image("image 2", 2, first=0) == OTHER
    assert find_image("the first image", 2, first=0) == 1
