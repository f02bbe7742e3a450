"""Rows of a made-up benchmark file."""

from collections.abc import Mapping, Sequence
from typing import Any

from mirg_jax.data.mig_bench_rows import find_target_image
from mirg_jax.mig_bench.benchmark import Row


def file_row(task="diff", answer=(0.1, 0.2, 0.5, 0.6), images=2, question="Where?", info=""):
    """A row as a file has it."""
    return {
        "task": task,
        "images": [f"{i}.jpg" for i in range(images)],
        "question": question,
        "answer": list(answer),
        "additional_info": info,
        "need_format": True,
    }


def rows_of(content: Sequence[Mapping[str, Any]]) -> list[Row]:
    """What a file of this content would be read as, were it not refused for what its texts are."""
    return [
        Row(
            index=index,
            task=row["task"],
            images=tuple(row["images"]),
            question=row["question"],
            answer=tuple(row["answer"]),
            target_image=find_target_image(
                row["question"], row.get("additional_info"), len(row["images"])
            ),
        )
        for index, row in enumerate(content)
    ]
