"""Every wording names the image to look in, in words that the project's readers understand."""

import re

import numpy as np
import pytest

from mirg_jax.compose.wordings import WORDINGS, ask
from mirg_jax.data.named_images import find_asked_image
from mirg_jax.grounding.tasks import MIG_BENCH_TASKS

SEARCHED = ("group_grounding", "refer_anywhere", "reasoning_company")  # finding it is the task
WORDS = {"n": 2, "kind": "colour", "most": "leftmost", "plain": "a dog", "other": "an apple"}


@pytest.mark.parametrize("wording", WORDINGS)
def test_the_image_to_look_in_is_understood(wording):
    rng, seen = np.random.default_rng(0), set()
    for turn in range(120):
        image = 2 if wording == "reasoning_order" else 1 + turn % 4
        if wording not in ("common_object", "diff", "view_diff"):
            image = max(image, 2)
        count = 2 if "diff" in wording or wording == "reasoning_order" else 4
        image = min(image, count)
        question = ask(rng, wording, image=image, box=(1, 2, 30, 40), name="red cup", **WORDS)
        seen.add(re.sub(r"the \w+ image|image-\d", "", question))
        assert "{" not in question and "  " not in question
        found = find_asked_image(question, count)
        assert not found.problem, (question, found)
        if wording in SEARCHED:
            assert found.image is None, question
        else:
            assert found.image == (1 if wording == "region" else image), question
    assert len(seen) == len(WORDINGS[wording]) >= 2


def test_every_task_has_wordings():
    for task in MIG_BENCH_TASKS:
        assert any(wording.startswith(task) for wording in WORDINGS)
