"""Which of the images that a question names is the one to look in."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirg_jax.grounding.grammar import ORDINALS
from mirg_jax.grounding.question_words import find_asked


@pytest.mark.parametrize(
    "question, image",
    [
        ("Locate in the second image the dog marked in the first", 2),
        ("Locate in the second image the dog marked in the first image", 2),
        ("Locate the dog of the first image in the second", 2),
        ("Find in the other image what is marked in the first image", 2),
        ("Find the dog of the first image in the other one.", 2),
        ("Find the chair in image 2 that matches image 1", 2),
        ("Locate the dog in image 1 that looks like the dog in image 2", 1),
        ("Look at the object in image-1, then locate its like in image-2.", 2),
        ("For the object in the first image, locate the same in image-2", 2),
        ("Find and locate where does the object in image-1 locate in the image-2.", 2),
        ("In the first image, find the dog, then locate it in the second image.", 2),
        ("In the second image, locate the dog marked in the first image.", 2),
        ("In the first image there is a dog. Where is it in the second?", 2),
        ("Find the dog in image 1 next to the cat in image 2", None),
        ("Find the dog in image 1 and image 2", None),
        ("Find the dog of image 1 in images 2 and 3", None),
        ("Find the difference between image 1 and image 2", None),
        ("Find the cat like that in image 1.", None),
        ("Both images show a dog. Where is that of image 2?", None),
        ("Find the object in image 0 in image 1", None),
        ("Locate the object in Image-2 that can help the person in Image-1", 2),
        ("Which object in Image-2 can be used in the scene presented in Image-1?", 2),
        ("Which object in Picture B goes with the one in Picture A?", 2),
        ("在图2中找到图1标记的狗", 2),
        ("图1中的狗在哪里", None),
        ("Find it in image 7", None),
        ("Find it in image 1 and locate it in image 2", None),
        ("Where is the dog shown in the second image?", None),
        ("The object of the first image is in both images; find it in both images.", None),
        ("Where does the object shown in image-1 appear in image-2? Please locate it.", 2),
        ("Where is the object of the first image in image-2?", 2),
        ("Which object in Picture A goes with the one in Picture B?", 1),
        ("Find the dog of image 1 in image 2, and not in image 1.", 2),
        ("Show me, in the second of the images, the dog of the first image.", None),
        ("Locate the red car from the first image in the second image.", 2),
        ("Find the object in the second image corresponding to that in the first image.", 2),
        ("The object marked in image 1 is also in image 2. Where is it?", None),
        ("In image 2, where is the dog of image 1?", 2),
        ("Where in image 2 is the dog shown in image 1?", 2),
        ("Where's the dog in image 1, and where's it in image 2?", None),
        ("Given the object in image 2, find the corresponding object in image 1.", 1),
        ("Given image 2, locate the same dog in image 1.", 1),
        ("Detect the person from image 1 in image 2.", 2),
        ("Identify the item in image 1 used by the man in image 2.", None),
        ("Find the tool in the first image which the person in the second image needs.", 1),
        ("Return the box of the cat in image 2 that is missing from image 1.", 2),
        ("Image I shows a dog. Locate it in Image II.", 2),
        ("Track the object from frame 1 and locate it in frame 2.", 2),
        ("Using image 1 as the reference, find the dog in image 2", 2),
        ("For what the first image marks, find the thing in the second image.", 2),
        # Denials of several words.
        ("Don't locate it in image 2; locate it in image 1.", 1),
        ("Don't find it in image 2, but in image 1.", None),
        ("You shouldn't locate it in image 1 but in image 2.", None),
        ("Please don’t search for it in image 2.", None),
        ("Find the object that doesn't appear in image 2.", None),
        ("Find the object in image 1 that isn't in image 2.", 1),
        ("Find the object in image 1 that doesn't appear in image 2.", 1),
        ("The dog isn't visible in image 1 but find it in image 2.", 2),
        ("Locate what couldn't be seen in image 1 in image 2.", 2),
        ("Find what is not in image 1 in image 2.", 2),
        ("Why don't you find it in image 2?", 2),
    ],
)  # fmt: skip
def test_of_two_images(question, image):
    found = find_asked(question, 2)
    assert found.image == image and bool(found.problem) == (image is None)


# The image to look in, which may be called unclear, but must not be taken for another.
@pytest.mark.parametrize(
    "question, image",
    [
        ("Where is the object in image 1 located in image 2?", 2),
        ("How would the object in image 1 be located in image 2", 2),
        ("Where can the dog in image 1 be seen in image 2?", 2),
        ("Where, in image 2, is the dog in image 1?", 2),
        ("Where is in image 2 the dog in image 1?", 2),
        ("Please locate, in the second image, the object in the first image.", 2),
        ("In the second image, can you locate the object in the first image?", 2),
        ("In the second image, the object in the first image is where?", 2),
        ("In image 2 there are several dogs. Find the one in image 1.", 2),
        ("Image 2 shows several dogs. Find the one in image 1.", 2),
        ("Find the dog in image 1 in image 2.", 2),
        ("Find the dog in image 1 inside of image 2.", 2),
        ("Find the same dog as in image 1 in image 2.", 2),
        ("Track the car in image 1 to image 2.", 2),
        ("Follow the car in image 1 and report where it is in image 2.", 2),
        ("Project the box in image 1 onto image 2.", 2),
        ("What is in image 2 the counterpart of the box in image 1?", 2),
        ("To which region in image 2 does the box in image 1 correspond?", 2),
        ("For image 2, give the box of the dog in image 1.", 2),
        ("Give me the box for image 2 of the dog in image 1", 2),
        ("Find the dog in image 1. Answer with coordinates in image 2.", 2),
        ("Find the dog in image 1 and give coordinates relative to image 2.", 2),
        ("Locate the painting, which hangs in image 1 on the left, in image 2.", 2),
        ("Locate the object held by the man in image 1 that is on the table in image 2.", 2),
        ("Which object in image 1 does not exist in image 2?", 1),
        ("Which object in image 1 doesn't appear in image 2?", 1),
        ("Which object in image 2 does not exist in image 1?", 2),
        ("Locate, in image 1, the object in image 2.", 1),
        ("Find the dog in image 2 in image 1.", 1),
        ("Locate the object in image 2 which corresponds to the one in image 1.", 2),
        ("Ground the item in picture B which pairs with the item in picture A.", 2),
        ("Locate the object in image 1 in the left half of image 2.", 2),
        ("Match the person in image 1 to one of the people of image 2.", 2),
        ("Use the coordinates of image 2: locate the dog in image 1.", 2),
        ("The red box in image 1 marks a car. Where is the car in image 2?", 2),
        ("The white spot in image 1 is a bird. Find the bird in image 2.", 2),
        ("Find the car in image 2 for the parking spot in image 1.", 2),
        ("In image 1, identify the marked animal. Locate the animal in image 2.", 2),
        ("Which person in image 1 is marked? Locate the person in image 2.", 2),
        ("How does the dog look in image 1? Find a similar one in image 2.", 2),
        ("Don't look in image 1. Find the cat in image 2.", 2),
        ("find the dog in image 1 in iamge 2", 2),
        ("For image 1 find the most similar object in image 2.", 2),
        ("Return the bounding box of the object in image 1 as it appears in image 2.", 2),
        ("在图1中找到狗，然后在图2中找到同样的狗。", 2),
        ("在图1中框出的人出现在图2的哪里", 2),
        ("The target is shown in image 1. Please find it.", None),
        ("Look at image 1. Find the same dog.", None),
        ("Find a tool for the man in image 1.", None),
        ("There's no cat in image 1. Where is it?", None),
        ("Find the object that isn't seen in image 1", None),
        ("Find the dog in the image after image 1.", None),
        ("Here is image 2. Find the dog in it.", 2),
        ("What is different in the second image? Please locate it.", 2),
        ("Locate the second photo frame on the wall.", None),
        ("Which image contains the same dog as image 1?", None),
        ("In which of the images is the dog in image 1 sleeping?", None),
        ("Which image other than image 1 has the dog?", None),
        ("Besides image 1, where does the dog appear?", None),
        ("The dog in image 1 appears in another image. Find it.", None),
        ("Find the dog in image 1 in one of the other images.", None),
        ("Locate the dog of the first image in the images.", None),
    ],
)
def test_no_other_image_is_taken(question, image):
    for num_images in (2, 3):
        assert find_asked(question, num_images).image in (image, None)


@pytest.mark.parametrize(
    "question",
    [
        "Where is the dog?",
        "What differs between these images?",
        "Find the object that all images have in common.",
        "Compare both images and give the difference.",
        "Find the dog in the first and second images.",
        "Please ground the tool from the left image in the right image.",
        "Is it in the first row or in the second?",
    ],
)
def test_a_question_that_names_no_image_is_no_unclear_one(question):
    assert find_asked(question, 3) == (None, "")


def test_the_problem_says_what_is_named():
    problem = find_asked("Find the dog of image 1 in the other image.", 3).problem
    assert problem == 'it names "image 1", "other image", and not clearly the one to look in'
    assert "none of the 3" in find_asked("Find it in image 4.", 3).problem
    assert "from 1" in find_asked("Find it in image 0.", 3).problem


NAMES = [
    lambda n: f"image {n}",
    lambda n: f"Image-{n}",
    lambda n: f"the {ORDINALS[n - 1]} image",
    lambda n: f"the {n}th picture",
    lambda n: f"image ({n})",
    lambda n: f"Photo {'ABCDEF'[n - 1]}",
]
# X is the image to look in.
CLEAR = [
    "Locate in X the dog marked in Y.",
    "The dog is marked in Y; please locate it in X.",
    "Find the dog of Y in X.",
    "In X, where is the dog of Y?",
    "In Y there is a dog. Find it in X. It is small.",
    "Find the dog in X that looks like the one in Y.",
    "For the dog in Y, find this dog in X, not in Y.",
    "Y shows a dog. Which animal in X is like it?",
]
UNCLEAR = [
    "Find the dog in X next to the cat in Y.",
    "Find it in X and then find it in Y.",
    "Where is the dog, in X or in Y?",
    "Find what is in both images, like in Y.",
    "The dog of X and the dog of Y.",
]
number = st.integers(1, 6)


@settings(max_examples=300)
@given(number, number, st.sampled_from(NAMES), st.sampled_from(NAMES), st.sampled_from(CLEAR))
def test_grammar_decides_wherever_the_names_stand(x, y, name_x, name_y, form):
    question = form.replace("X", name_x(x)).replace("Y", name_y(y))
    assert find_asked(question, 6) == (x, "")


@settings(max_examples=200)
@given(number, number, st.sampled_from(NAMES), st.sampled_from(UNCLEAR))
def test_two_images_alike_are_unclear(x, y, name, form):
    if x != y:
        found = find_asked(form.replace("X", name(x)).replace("Y", name(y)), 6)
        assert found.image is None and found.problem


@given(st.text(alphabet="in the first other image 12,.?that", max_size=200), number)
def test_any_text_is_read(text, num_images):
    image, problem = find_asked(text, num_images)
    assert (image is None or 1 <= image <= num_images) and not (image and problem)
