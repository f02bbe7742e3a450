"""What is missing in rows that are almost of a known form."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

# Names that other data sets have for a field, the likeliest first.
_OTHER_NAMES = {
    "images": (
        *("image_paths", "image_path", "img_paths", "img_path", "image_files", "image_file"),
        *("imgs", "img", "pictures", "picture", "file_names", "file_name", "image_url"),
    ),
    "conversations": ("conversation", "dialogue", "dialog", "chat", "turns", "conv"),
    "question": (
        *("problem", "prompt", "query", "instruction", "input", "expression", "sentence"),
        *("caption", "phrase", "text"),
    ),
    "targets": ("boxes", "bboxes", "bbox", "box", "objects", "solution", "ground_truth", "answer"),
}
# Each form's name, and the fields that a row of it needs.
_FORMS = {
    "conversations": ("images", "conversations"),
    "trajectories": ("images", "question", "targets"),
}
_INSTEAD = {"images": ("image",), "conversations": ("messages",)}
_WRITTEN = {
    "targets": 'as "targets": [{"image": 1, "box": [x1, y1, x2, y2]}], on a grid of 0..1000'
}
_COCO = {"images", "annotations", "categories"}


def missing_images(row: Mapping[str, Any]) -> str:
    """Returns what to do about a row without images that has them under another name, or ""."""
    other = _other_name(row, "images")
    return f"'images' is missing; rename {other!r}" if other else ""


def missing(rows: Sequence[Any], is_known: Callable[[dict[str, Any]], bool]) -> str:
    """Returns what a file's rows lack, where none is of a known form; "" if nothing is near.

    Args:
      rows: the file's rows, at least one.
      is_known: whether a row is of a known form.
    """
    first = rows[0]
    if not isinstance(first, dict):
        return ""
    if len(rows) == 1:
        if first.keys() >= _COCO:
            return (
                "these are labels of photos in COCO's form, of which scripts/compose.py makes rows"
            )
        if inside := [name for name, value in first.items() if _begins_with(value, is_known)]:
            return f"the rows are in its {' and '.join(map(repr, inside))}; write such a list alone"
        if all(isinstance(row, dict) and is_known(row) for row in first.values()) and first:
            return "its values are the rows; write a list of them"
    found = {name: _fits(first, fields) for name, fields in _FORMS.items()}
    best = max(found, key=lambda name: found[name])
    if not found[best]:
        return ""
    wanted = []
    for field in _FORMS[best]:
        if any(name in first for name in (field, *_INSTEAD.get(field, ()))):
            continue
        other, written = _other_name(first, field), _WRITTEN.get(field)
        if other and written:
            wanted.append(f"write {other!r} {written}")
        elif other:
            wanted.append(f"rename {other!r} to {field!r}")
        else:
            wanted.append(f"add {field!r}" if not written else f"add the boxes, {written}")
    return f"the first is nearest to {best}: {'; '.join(wanted)}" if wanted else ""


def _begins_with(value: Any, is_known: Callable[[dict[str, Any]], bool]) -> bool:
    """Returns whether a value is a list that begins with a row of a known form."""
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], dict)
        and is_known(value[0])
    )


def _fits(row: Mapping[str, Any], fields: Sequence[str]) -> float:
    """Returns how near a row is to a form: the share of its fields; more if by their own names."""
    score = 0.0
    for field in fields:
        own = any(name in row for name in (field, *_INSTEAD.get(field, ())))
        score += 1 if own else 0.9 * (_other_name(row, field) is not None)
    # Images alone are no form.
    return score / len(fields) if score > 1 else 0.0


def _other_name(row: Mapping[str, Any], field: str) -> str | None:
    """Returns the name under which a row may have a field."""
    by_small = {name.lower(): name for name in reversed(row) if row[name] is not None}
    return next((by_small[name] for name in _OTHER_NAMES[field] if name in by_small), None)
