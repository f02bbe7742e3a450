"""Rows of the three formats that training reads, and files of them."""

import json
import pathlib

from mirg_jax.data.examples import Example, Rejected, read_examples

BOX = "<|box_start|>(10,20),(300,400)<|box_end|>"
TRAJECTORY = {
    "id": "a",
    "task": "diff",
    "images": ["1.jpg", "2.jpg"],
    "question": "<image><image>What differs?",
    "targets": [{"image": 2, "box": [1, 2, 3, 4], "label": "cup"}],
    "response": "<think>hm</think><answer></answer>",
}
MIG_BENCH = {
    "task": "diff",
    "images": ["1.jpg", "2.jpg"],
    "question": "What differs?",
    "answer": [0.1, 0.2, 0.3, 0.4],
    "additional_info": "",
    "need_format": True,
}
MGROUNDING = {
    "id": "a",
    "images": ["1.jpg", "2.jpg"],
    "conversations": [
        {"from": "human", "value": "<image>\n<image>\nWhere is the dog?"},
        {"from": "gpt", "value": f"It's in the second image. {BOX}"},
    ],
    "type": "gg_train",
}


def said(value, question="<image>Where?"):
    return [{"from": "human", "value": question}, {"from": "gpt", "value": value}]


def chat(*turns, **more):
    """A row as chat data have it, without an id."""
    messages = [{"role": role, "content": content} for role, content in turns]
    return {"messages": messages, "images": ["1.jpg", "2.jpg"], **more}


def read_content(
    folder: pathlib.Path, content, name: str = "rows.json"
) -> tuple[list[Example], list[Rejected]]:
    """Reads rows given as Python objects, or a file's text or bytes."""
    if isinstance(content, list):
        lines = "\n".join(map(json.dumps, content))
        content = lines if name.endswith("l") else json.dumps(content)
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_examples(path)
