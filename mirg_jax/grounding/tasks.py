"""The tasks: MIG-Bench's ten, the seven the paper trains on, and MGrounding-630k's names for them.

A task goes by its name in the MIG-Bench file ("common_object") everywhere in the code.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SPONTANEOUS = "Spontaneous"
REFERENTIAL = "Referential"
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Task:
    """A MIG-Bench task: its name in the file, in the paper's tables, and its group there."""

    name: str
    short: str
    group: str


# In the order of the columns of the paper's tables.
MIG_BENCH_TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("diff", "Static", SPONTANEOUS),
        Task("view_diff", "Robust", SPONTANEOUS),
        Task("common_object", "Common", SPONTANEOUS),
        Task("object_tracking", "OT", REFERENTIAL),
        Task("multi_view", "MV", REFERENTIAL),
        Task("region", "Region", REFERENTIAL),
        Task("refer_grounding", "Refer", REFERENTIAL),
        Task("group_grounding", "GG", REFERENTIAL),
        Task("reasoning", "Reason", REFERENTIAL),
        Task("correspondence", "Co-Re", REFERENTIAL),
    )
}

TRAINING_TASKS: tuple[str, ...] = (
    "common_object",
    "diff",
    "reasoning",
    "group_grounding",
    "object_tracking",
    "refer_grounding",
    "region",
)

# MGrounding-630k keeps each subset in a folder. Its free-form questions are the nearest it has to
# the reasoning task.
MGROUNDING_FOLDERS: dict[str, str] = {
    "Common_Object": "common_object",
    "Difference": "diff",
    "Free-Form": "reasoning",
    "Group_Grounding": "group_grounding",
    "Object_Tracking": "object_tracking",
    "Referring_Grounding": "refer_grounding",
    "Region_Locating": "region",
}

MGROUNDING_TYPES: dict[str, str] = {
    "common_train": "common_object",
    "diff_train": "diff",
    "free_form": "reasoning",
    "gg_train": "group_grounding",
    "ot_train": "object_tracking",
    "refer_train": "refer_grounding",
    "region_train": "region",
}

_TASK_IN_ID = re.compile(f"(?<![a-z])(?:{'|'.join(MIG_BENCH_TASKS)})(?![a-z])")


def task_of_mgrounding(row: Mapping[str, Any]) -> str:
    """The task of a row of the MGrounding-630k layout, or "unknown".

    A task named in the `id` is the most specific, then the folder of the images, then `type`:
    the files know no `type` for several tasks, and most types are not documented.
    """
    if named := _TASK_IN_ID.search(str(row.get("id", ""))):
        return named.group()
    images = row.get("images")
    for image in images if isinstance(images, list) else ():
        for part in str(image).split("/"):
            if part in MGROUNDING_FOLDERS:
                return MGROUNDING_FOLDERS[part]
    kind = str(row.get("type", ""))
    return MGROUNDING_TYPES.get(kind, kind if kind in MIG_BENCH_TASKS else UNKNOWN)
