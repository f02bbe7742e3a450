"""What a manifest counts, as the terminal's table and the page show it.

Tasks have the same names there as in the manifest, in rows, and behind `--tasks`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

PARTIAL = ("refs", "lasot", "rows")  # kinds of sources whose photos may show more than is labelled
HEADER = ("file", "task", "asked", "examples", "repeated")


def by_task(manifest: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Returns each file and task with what the manifest has of it."""
    files = manifest["files"].items()
    return [(file, task, row) for file, tasks in files for task, row in tasks.items()]


def rows(manifest: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Returns the values of `HEADER` for each file and task."""
    return [
        (file, task, *(row[name] for name in HEADER[2:])) for file, task, row in by_task(manifest)
    ]


def told_left_out(left_out: Sequence[Mapping[str, Any]], what: str) -> str:
    """Returns how many cases were left out, with the first; "" if none was.

    Args:
      left_out: reasons, counts and first cases, as `LeftOut.to_json` gives them.
      what: what was left out, behind the number.
    """
    if not left_out:
        return ""
    count = sum(each["count"] for each in left_out)
    return f"{count} {what}, the first: {left_out[0]['first']}"


def _told_incomplete(sources: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns a line about kinds of sources that may be why examples are missing, if there are."""
    kinds = sorted(
        {each["kind"] for each in sources if each["kind"] in PARTIAL and not each["complete"]}
    )
    if not kinds:
        return []
    return [
        f"labels of {', '.join(kinds)} don't say what else a photo shows, which some tasks need; "
        f"if they have every object, --complete={','.join(kinds)} says so, else add a source that "
        "has all boxes"
    ]


def table(manifest: Mapping[str, Any]) -> str:
    """Returns a manifest's counts by file and task as lines of text."""
    form = "{:12} {:18} {:>8} {:>9} {:>9}"
    lines = [form.format(*HEADER)]
    for values, (_, _, row) in zip(rows(manifest), by_task(manifest), strict=True):
        few = row["examples"] < row["asked"] and row["draws_left_out"]
        why = f"  {row['draws_left_out'][0]['reason']}" if few else ""
        lines.append(form.format(*values) + why)
    if any(row["examples"] < row["asked"] for _, _, row in by_task(manifest)):
        lines += _told_incomplete(manifest["settings"]["sources"])
    if told := told_left_out(manifest["labels_left_out"], "labels or photos left out"):
        lines.append(told)
    return "\n".join(lines)
