"""Task names: MIG-Bench's ten, the seven trained on, and MGrounding-630k's names for them.

All code uses a task's name in the MIG-Bench file, such as "common_object".
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
    """A MIG-Bench task."""

    name: str  # in the MIG-Bench file
    short: str  # column in the paper's tables
    group: str  # group of columns in the paper's tables


# In the order of the columns in the paper's tables.
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

# Their box is the same in all images, and neither question nor answer names one.
IN_ANY_IMAGE = ("diff",)

TRAINING_TASKS: tuple[str, ...] = (
    "common_object",
    "diff",
    "reasoning",
    "group_grounding",
    "object_tracking",
    "refer_grounding",
    "region",
)

# MGrounding-630k has one folder per subset. Its free-form questions are the closest match for the
# reasoning task.
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
    """Returns the task of a row in MGrounding-630k's format, or "unknown".

    The sources are, by priority: a task name in the row's `id`, the folder of its images, its
    `type`. The type comes last because several tasks have none in the files, and most types are not
    documented.
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
