"""A model of our own as the teacher: a tiny one, whose answers are noise."""

import asyncio

from configs import trajectories
from mirg_jax.data.examples import read_examples
from mirg_jax.inference.ask import ask
from mirg_jax.trajectories import build
from mirg_jax.trajectories.teachers import Request


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
    teachers = build.make_teachers(config, str(scenes))
    assert teachers["reasoning"] is teachers["mapping"] is not teachers["reassembly"]
    what = {"source": str(scenes / "sft.json"), "image_root": str(scenes), "progress": False}
    result = build.build(config, **what, output_dir=tmp_path)
    assert result.summary["rejected"] == result.summary["questions"] == 28
    assert result.summary["stages"]["reasoning"]["answers"] == 56
    again = build.build(config, **what, output_dir=tmp_path)
    assert again.summary == result.summary

    # The likeliest answer is that of scripts/ground.py; drawn ones are the request's own, alone
    # or in company.
    example = read_examples(scenes / "sft.json")[0][0]
    prompt = "Where is the red ring?"

    async def answers(temperature, count):
        config.stages.mapping.temperature = temperature
        teacher = build.make_teachers(config, str(scenes))["mapping"]
        requests = [
            Request(example, "mapping", attempt, prompt, (), teacher.settings)
            for attempt in range(1, count + 1)
        ]
        return [r.text for r in await asyncio.gather(*map(teacher.ask, requests))]

    (greedy,) = asyncio.run(answers(0.0, 1))
    how.evaluation.max_tokens = 6
    paths = [scenes / path for path in example.images]
    said = ask(how, checkpoint=str(tiny_model), images=paths, question=prompt)
    assert greedy == said.removesuffix("<|im_end|>")
    five = asyncio.run(answers(1.0, 5))
    assert len(set(five)) > 1
    assert asyncio.run(answers(1.0, 1)) == five[:1]
