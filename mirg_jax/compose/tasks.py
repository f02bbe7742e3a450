"""The tasks by name: what draws an example of each. The names are the benchmark's."""

from collections.abc import Callable

import numpy as np

from mirg_jax.compose import photo_tasks, view_tasks
from mirg_jax.compose.drafts import Draft
from mirg_jax.compose.library import Library

Composer = Callable[[np.random.Generator, Library], Draft]

# Static difference is `diff` there, robust difference `view_diff`, a look-up by co-reference
# `reasoning`.
COMPOSERS: dict[str, Composer] = {
    make.__name__: make
    for make in (
        view_tasks.diff,
        view_tasks.view_diff,
        photo_tasks.common_object,
        view_tasks.object_tracking,
        view_tasks.multi_view,
        view_tasks.region,
        photo_tasks.refer_grounding,
        photo_tasks.group_grounding,
        photo_tasks.reasoning,
        photo_tasks.correspondence,
    )
}
