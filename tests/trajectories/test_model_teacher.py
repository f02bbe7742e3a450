"""A model in this process as the teacher: a tiny one with random weights."""

import asyncio

import pytest

from configs import trajectories
from mirg_jax.data.examples import read_examples
from mirg_jax.errors import CheckpointError
from mirg_jax.inference.predictor import Predictor
from mirg_jax.runs import settings as run_settings
from mirg_jax.trajectories import build, settings
from mirg_jax.trajectories.request import Request


@pytest.mark.slow
def test_a_tiny_model_answers_a_stage(recipe, scenes, tiny_model, tmp_path):
    how = recipe("grpo")
    how.data.shapes.lengths = (2048,)
    how.evaluation.batch_size = 4
    config = trajectories.scenes()
    config.scenes.seed = 5
    config.tries = 2
    for stage in ("reasoning", "mapping"):
        config.stages[stage].update(teacher="model", model=str(tiny_model), max_tokens=6)
        config.stages[stage].recipe = how
    typed = settings.read(config)
    teachers = build.make_teachers(typed, str(scenes))
    assert teachers["reasoning"] is teachers["mapping"] is not teachers["reassembly"]
    what = {"source": str(scenes / "sft.json"), "image_root": str(scenes), "progress": False}
    result = build.build(typed, **what, output_dir=tmp_path)
    assert result.summary["rejected"] == result.summary["questions"] == 28
    assert result.summary["stages"]["reasoning"]["answers"] == 56
    again = build.build(typed, **what, output_dir=tmp_path)
    assert again.summary == result.summary

    # With temperature 0 the answer is that of scripts/ground.py. With a higher temperature it
    # depends on the request only, not on the others in its batch.
    example = read_examples(scenes / "sft.json")[0][0]
    prompt = "Where is the red ring?"

    async def answers(temperature, count):
        config.stages.mapping.temperature = temperature
        typed = settings.read(config)
        teacher = build.make_teachers(typed, str(scenes))["mapping"]
        identity = typed.stages["mapping"].teacher.identity
        requests = [
            Request(example, "mapping", attempt, prompt, (), identity)
            for attempt in range(1, count + 1)
        ]
        return [reply.text for reply in await asyncio.gather(*map(teacher.ask, requests))]

    (greedy,) = asyncio.run(answers(0.0, 1))
    how.evaluation.max_tokens = 6
    predictor = Predictor.open(str(tiny_model), run_settings.read(how))
    assert greedy == predictor.ground([scenes / path for path in example.images], prompt).text
    five = asyncio.run(answers(1.0, 5))
    assert len(set(five)) > 1
    assert asyncio.run(answers(1.0, 1)) == five[:1]


@pytest.mark.parametrize("text", ['{"model": "ab', "[]", "null", "[" * 100_000])
def test_a_damaged_record_of_models_is_named(text, recipe, scenes, tiny_model, tmp_path):
    config = trajectories.scenes()
    config.stages.mapping.update(teacher="model", model=str(tiny_model), recipe=recipe("grpo"))
    (tmp_path / "models.json").write_text(text)
    what = {"source": str(scenes / "sft.json"), "image_root": str(scenes)}
    with pytest.raises(CheckpointError, match="models.json: .* delete it if no model") as error:
        build.build(settings.read(config), **what, output_dir=tmp_path)
    assert "\n" not in str(error.value) and (tmp_path / "models.json").read_text() == text
