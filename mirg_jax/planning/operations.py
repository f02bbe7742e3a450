"""The model's operations and tokens in a step by formula, at the largest shapes of a recipe.

What rematerialisation computes again isn't counted. Of GRPO's rounds of sampling, a step has one
here, and learns from as many groups as it can.
"""

from mirg_jax.models import flops
from mirg_jax.planning.shapes import model_config
from mirg_jax.runs.settings import Settings


def by_phase(settings: Settings) -> dict[str, float]:
    """Returns the operations of one step, by phase."""
    sizes, shapes = model_config(settings.model.path), settings.data.shapes
    T, S, P = shapes.lengths[-1], shapes.slots[-1], shapes.patches[-1]
    backward = 1.0 if settings.lora else 2.0  # frozen matrices need no gradient
    frozen = settings.tower_is_frozen
    vision_backward = 0.0 if frozen else 2.0
    images = flops.tower(sizes, S, P)
    grpo = settings.grpo
    if grpo is None:
        rows = settings.batch_size
        forward = flops.decoder(sizes, T, flops.causal(T), T)
        return {"update": rows * ((1 + backward) * forward + (1 + vision_backward) * images)}
    new = grpo.group * grpo.max_tokens
    pairs = grpo.group * flops.causal(grpo.max_tokens) + new * T
    prompt = flops.decoder(sizes, T, flops.causal(T), 0)
    forward = prompt + flops.decoder(sizes, new, pairs, new)
    again = 0.0 if frozen else images  # a frozen tower's visual tokens are computed once per step
    reference = forward + again if grpo.beta else 0.0
    update = (1 + backward) * forward + (1 + vision_backward) * again
    found = {
        "rollout": settings.examples_at_once * (forward + images),
        "reference": settings.batch_size * reference,
        "update": settings.batch_size * grpo.updates * update,
    }
    if grpo.takes_policy_before:
        found["policy"] = settings.batch_size * (forward + again)
    return found


def by_program(settings: Settings) -> dict[str, float]:
    """Returns the operations of one step, by program; those that multiply no matrices have none."""
    if settings.stage == "inference":
        return {}
    phases = by_phase(settings)
    found = {"gradients": phases["update"]}
    if settings.grpo is None:
        return found
    found |= {name: value for name, value in phases.items() if name in ("reference", "policy")}
    found["sample"] = phases["rollout"]
    if settings.tower_is_frozen:
        sizes, shapes = model_config(settings.model.path), settings.data.shapes
        tower = flops.tower(sizes, shapes.slots[-1], shapes.patches[-1])
        found["tower"] = settings.examples_at_once * tower
        found["sample"] -= found["tower"]
    return found


def prefilling(settings: Settings) -> float:
    """Returns the operations of a GRPO step's prompts in sampling, without their images."""
    sizes, length = model_config(settings.model.path), settings.data.shapes.lengths[-1]
    return settings.examples_at_once * flops.decoder(sizes, length, flops.causal(length), 0)


def tokens(settings: Settings) -> int:
    """Returns the tokens of a step's examples, with those that it samples."""
    length = settings.data.shapes.lengths[-1]
    return settings.examples_at_once * length + sampled_tokens(settings)


def sampled_tokens(settings: Settings) -> int:
    """Returns the tokens that a GRPO step samples if all completions have the longest length."""
    grpo = settings.grpo
    return settings.examples_at_once * grpo.group * grpo.max_tokens if grpo else 0
