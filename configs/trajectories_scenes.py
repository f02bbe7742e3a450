"""Trajectories of the procedural scenes, by the embedded teacher: no network, no cost.

As in the paper the annotator is imperfect: a side of a box lies up to 0.3 sides too far out, and
the truth doesn't mend it.
"""

from mirg_jax.trajectories import settings


def get_config():
    config = settings.trajectories()
    for stage in config.stages.values():
        stage.teacher = "scenes"
        stage.update(requests_per_minute=0.0, tokens_per_minute=0.0)
        stage.update(prompt_price=0.0, completion_price=0.0)
    config.select.update(sft=0, rl=0)
    config.checks.update(answer_iou=0.3, match_iou=0.3, truth_boxes=False, min_words=5)
    config.scenes.error = 0.3
    return config
