"""Time of the vision tower over the images of a group, compared with transformers' tower.

"once" computes each image once per group, which is all that is needed. "repeated" computes it for
every completion, as systems do whose rows are a prompt and one completion. A second case measures
Qwen2.5-VL's tower over images of increasing size, with and without windows.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np
import torch
from flax import nnx

from benchmarks.group import SIZE, Size, Task, Work, collate, make_task
from benchmarks.reference import torch_images, torch_model
from benchmarks.shared_prefix import temporary_bytes
from benchmarks.side_by_side import Variant
from mirg_jax import sharding
from mirg_jax.data.batching import patch_positions
from mirg_jax.models import flops
from mirg_jax.models.config import VisionConfig
from mirg_jax.models.sizes import QWEN2_5_VL_3B
from mirg_jax.models.vision import VisionTower
from mirg_jax.types import Images


def _ours(task: Task, times: int, *, backward: bool):
    """Returns a compiled program and `() -> features`; with `backward`, `() -> gradients`."""
    images = jax.tree.map(lambda x: np.repeat(x, times, axis=0), collate(task.prompts).images)
    images = sharding.place_rows(images, task.mesh)

    def tower(params, images):
        return nnx.merge(task.model.graph, params).visual(images)

    def gradients(params, images):
        return jax.grad(lambda params: tower(params, images).sum())(params)["visual"]

    function = gradients if backward else tower
    program = jax.jit(function).lower(task.model.params, images).compile()
    run = functools.partial(program, task.model.params, images)
    return program, lambda: jax.block_until_ready(run())


def _theirs(task: Task, tower, times: int, *, backward: bool) -> Callable[[], torch.Tensor]:
    images = [image for item in task.prompts for _ in range(times) for image in item.images]
    inputs = torch_images(images)

    def features():
        found = tower(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
        return found.pooler_output

    def run():
        if not backward:
            with torch.no_grad():
                return features()
        tower.zero_grad()
        features().sum().backward()

    return run


def vision(base: str, size: Size = SIZE) -> Iterator[Variant]:
    """Yields the forward pass, then forward and backward; our backward pass recomputes layers."""
    task = make_task(base, size)
    G, tower = size.group, torch_model(base).model.visual
    work = Work(task)
    images = [image for item in task.prompts for image in item.images]
    counts = {"once": 1, "repeated": G, "transformers_once": 1, "transformers": G}
    for name, backward in {"forward": False, "forward and backward": True}.items():
        how = {"backward": backward}
        programs, ways = {}, {}
        for way, times in {"once": 1, "repeated": G}.items():
            programs[way], ways[way] = _ours(task, times, **how)
        theirs = {
            "transformers_once": _theirs(task, tower, 1, **how),
            "transformers": _theirs(task, tower, G, **how),
        }
        facts = {
            "images": {way: times * size.prompts * size.images for way, times in counts.items()},
            "patches_an_image": size.side**2,
            "tokens_an_image": size.side**2 // 4,
            # For one copy of the images: uint8 pixels of one frame, and floats of two frames.
            "pixel_bytes": {
                "once": sum(image.patches.nbytes for image in images),
                "transformers_once": torch_images(images)["pixel_values"].nbytes,
            },
            "temporary_bytes": temporary_bytes(programs),
        }
        if not backward:
            facts["difference"] = lambda ours=ways["once"], theirs=theirs["transformers_once"]: (
                float(np.abs(np.concatenate(jax.device_get(ours())) - theirs().numpy()).max())
            )
        passes = 3 if backward else 1
        counted = {way: passes * work.vision(times) for way, times in counts.items()}
        yield Variant(name, ways | theirs, facts, counted=counted)


# An eighth of the published width; head size, windows and the MLP's ratio are as published.
_SMALL = VisionConfig(
    depth=4, embed_dim=160, num_heads=2, out_dim=2048, mlp_dim=428, window_size=112
)  # fmt: skip
SIDES = (32, 64, 96, 128)  # patches along an image's side


def area(_: str, sides: tuple[int, ...] = SIDES) -> Iterator[Variant]:
    """Yields a pass of one image through four blocks, for several sizes of the image."""
    rng = np.random.default_rng(0)
    for name, whole in {"windows": 0, "one block in four full": 1, "full": 4}.items():
        config = dataclasses.replace(_SMALL, full_blocks=tuple(range(4 - whole, 4)))
        rngs = nnx.Rngs(0)
        tower = VisionTower(config, rngs=rngs)
        graph, params = nnx.split(tower)
        ways, programs = {}, {}
        for side in sides:
            pixels = rng.integers(0, 256, (1, 1, side**2, 588), dtype=np.uint8)
            images = jax.device_put(Images(pixels, patch_positions((side, side))[None, None]))
            function = jax.jit(lambda params, images, graph=graph: nnx.merge(graph, params)(images))
            way = f"{side**2} patches"
            programs[way] = function.lower(params, images).compile()
            run = functools.partial(programs[way], params, images)
            ways[way] = lambda run=run: jax.block_until_ready(run())
        sized = dataclasses.replace(QWEN2_5_VL_3B, vision=config)
        counted = {f"{side**2} patches": flops.tower(sized, 1, side**2) for side in sides}
        yield Variant(name, ways, {"temporary_bytes": temporary_bytes(programs)}, counted)


CASES = {"vision": vision, "area": area}
