"""Settings: what answers are filed under, and values that are refused."""

import json

import pytest

from configs import trajectories
from mirg_jax.data.examples import Example, Target
from mirg_jax.errors import ConfigError
from mirg_jax.grounding.tasks import TRAINING_TASKS
from mirg_jax.trajectories import settings
from mirg_jax.trajectories.request import Request

QUESTION = Example(
    "q", "diff", ("a.jpg", "b.jpg"), "<image>\nWhat differs?", (Target((100, 200, 500, 600), 2),)
)


@pytest.mark.parametrize(
    ("stage", "changes", "key"),
    [
        ("reasoning", {}, "d960d8fa17dc34d34bab54f41dc82259"),
        ("mapping", {}, "d027b7400a000e3f9d74c64fb5997da3"),
        (
            "mapping",
            {"teacher": "model", "model": "some/model", "temperature": 0.0, "max_tokens": 64},
            "b6fa04c57cdc24489606dc0461b5b879",
        ),
        ("reassembly", {"teacher": "scenes"}, "d723035f5348c9a0251e4ed59c1de85c"),
    ],
)
def test_keys_of_requests_never_change(stage, changes, key):
    # With other keys, the answers in users' journals would be lost, and be paid for again.
    config = settings.trajectories()
    config.scenes.update(seed=7, error=0.3)
    config.stages[stage].update(changes)
    identity = settings.read(config).stages[stage].teacher.identity
    assert Request(QUESTION, stage, 2, "the prompt", (), identity).key == key
    of_images = Request(QUESTION, stage, 2, "the prompt", (), identity, "0123abcd")
    assert of_images.key_by_name == key


@pytest.mark.parametrize(
    ("pictures", "key"),
    [
        ("", "1a9493e0dae574dab39e5875f8ad4b27"),
        ("0123abcd", "f0f25ea44cb469de7dd0ad146ca0a649"),
        (None, "8145d8d80328406b085e056f55de6052"),
    ],
)
def test_keys_with_images_never_change_either(pictures, key):
    assert Request(QUESTION, "reasoning", 2, "the prompt", (), "{}", pictures).key == key
    if pictures:  # answers that earlier versions filed by samples of the images are still found
        both = Request(QUESTION, "reasoning", 2, "the prompt", (), "{}", f"{pictures}.4567cdef")
        assert both.key_by_samples == key != both.key


def test_a_recipe_is_part_of_a_teachers_identity():
    config = trajectories.local()
    how = config.stages.mapping.to_dict()
    names = ("model", "temperature", "max_tokens", "recipe")
    expected = json.dumps({name: how[name] for name in names}, sort_keys=True)
    assert settings.read(config).stages["mapping"].teacher.identity == expected


def test_an_equal_answer_is_not_asked_for_again():
    config = settings.trajectories()
    config.stages.mapping.temperature = 0.0
    config.stages.reassembly.teacher = "scenes"
    tries = {name: stage.tries for name, stage in settings.read(config).stages.items()}
    assert tries == {"reasoning": 3, "mapping": 1, "reassembly": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"select.sft": -1}, "select: counts and weights may not be negative"),
        ({f"select.weights.{task}": 0.0 for task in TRAINING_TASKS}, "nor all weights 0"),
        ({"checks.match_iou": 1.5}, "checks: answer_iou and match_iou lie within 0..1"),
        ({"checks.min_words": 500}, "checks: min_words may not be more than max_words"),
        ({"checks.max_objects": 0}, "checks: max_objects must be at least 1"),
        ({"tries": 0}, "tries: at least one answer of each stage"),
        ({"concurrency": 0}, "concurrency: at least one request"),
        ({"retries": -1}, "retries=-1 may not be negative"),
        ({"max_pixels": 0}, "max_pixels=0 must be at least 1"),
        ({"stages.mapping.teacher": "magic"}, "stages.mapping.teacher='magic': openai, scenes"),
        ({"stages.mapping.timeout": 0.0}, "stages.mapping.timeout=0 must be above 0"),
        ({"stages.mapping.prompt_price": -2.5}, "stages.mapping.prompt_price=-2.5 may not be"),
        ({"stages.mapping.temperature": -1.0}, "stages.mapping.temperature=-1 may not be"),
        (
            {"stages.mapping.extra_body": {"messages": []}},
            "stages.mapping.extra_body: 'messages' can't be set here",
        ),
        ({"stages.reasoning.teacher": "scenes", "scenes.error": -0.1}, "scenes.error=-0.1 may"),
    ],
)
def test_values_that_cannot_work_are_refused(changes, message):
    config = settings.trajectories()
    config.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError) as caught:
        settings.read(config)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_recipe_that_cannot_work_is_refused():
    config = trajectories.local()
    config.stages.mapping.recipe.model.remat = "some"
    with pytest.raises(ConfigError, match="^stages.mapping.recipe: model.remat='some' is none of"):
        settings.read(config)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("backoff", float("nan")),
        ("max_dollars", float("inf")),
        ("concurrency", 10**30),
        ("stages.mapping.temperature", float("nan")),
        ("stages.mapping.timeout", float("inf")),
        ("stages.reasoning.max_tokens", 10**30),
        ("stages.reasoning.prompt_price", float("nan")),
        ("checks.match_iou", float("nan")),
        ("select.weights.diff", float("inf")),
    ],
)
def test_numbers_that_are_none_are_refused(field, value):
    config = settings.trajectories()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ConfigError, match=f"^{field}={value} must "):
        settings.read(config)


def test_a_servers_own_fields_are_not_looked_at():
    config = settings.trajectories()
    config.stages.mapping.extra_body = {"seed": 2**40, "top_k": 2**40}
    assert settings.read(config).stages["mapping"].teacher.extra_body["top_k"] == 2**40
