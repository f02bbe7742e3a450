"""Sequences of frames with tracks: MOT's text files, and folders with one object a sequence."""

import configparser
import os
import pathlib
from collections.abc import Iterator

from mirg_jax.compose.names import clean
from mirg_jax.compose.photos import Labelled, Photo
from mirg_jax.compose.yolo import IMAGE_ENDINGS, walk
from mirg_jax.data.left_out import LeftOut
from mirg_jax.errors import DataError

# MOTChallenge's classes with tracks; the others are distractors, occluders and crowds.
_CLASSES = {1: "pedestrian", 2: "person", 3: "car", 4: "bicycle", 5: "motorbike", 7: "person"}
_LOOKED_FOR = frozenset(("pedestrian", "person"))  # vehicles have boxes only if they hide people
_LEAST_VISIBLE = 0.5
_LARGE = 1e9  # of a frame's number, a track's or a side


def read_mot(path: pathlib.Path, left_out: LeftOut) -> Iterator[Photo]:
    """Yields the frames of sequences with gt/gt.txt, as those of MOTChallenge.

    A line of it is frame, track, left, top, width, height, whether it counts, class and how much
    is visible. Lines that don't count, or of which less than half is visible, are no objects.
    Paths are absolute.

    Args:
      path: a sequence's folder, or one that has such folders below it.
      left_out: counts lines that can't be used.

    Raises:
      DataError: there is no such sequence.
    """
    for folder in _folders_with(path, "gt/gt.txt", "MOT", left_out):
        labels, before = folder / "gt/gt.txt", left_out.total
        boxes: dict[int, list[Labelled]] = {}
        unsure: dict[int, set[str]] = {}
        for number, line in _lines(labels, left_out):
            try:
                frame, thing, counts = _mot_line(line)
            except ValueError as error:
                left_out.add(
                    "MOT: a line can't be used", f"{labels} line {number}: {error}; correct it"
                )
                continue
            if counts:
                boxes.setdefault(frame, []).append(thing)
            else:
                unsure.setdefault(frame, set()).add(thing.label)
        if not boxes and left_out.total == before:
            left_out.add(
                "MOT: a sequence has no object",
                f"{labels}: has no line of an object that counts, as "
                "frame,track,left,top,width,height,1,1,1; get or make it again",
            )
        images, ending = _mot_images(folder)
        for frame in sorted(boxes):
            yield Photo(
                str(images / f"{frame:06d}{ending}"),
                tuple(boxes[frame]),
                looked_for=_LOOKED_FOR,
                unsure=frozenset(unsure.get(frame, ())),
                sequence=str(folder),
                frame=frame,
            )


def _mot_line(line: str) -> tuple[int, Labelled, bool]:
    """Reads a line: its frame, the object, and whether it counts."""
    fields = line.split(",")
    if len(fields) < 6:
        raise ValueError(f"{len(fields)} fields; frame,track,left,top,width,height are needed")
    first, track, x, y, width, height = numbers = [float(each) for each in fields[:6]]
    if not all(abs(each) < _LARGE for each in numbers):  # nor NaN
        raise ValueError("a number is too large or none")
    if not (width > 0 and height > 0):
        raise ValueError("the box is empty")
    number = float(fields[7]) if len(fields) > 7 else 1
    marked = float(fields[6]) if len(fields) > 6 else 1.0
    visible = float(fields[8]) if len(fields) > 8 else 1.0
    label = _CLASSES.get(number, _CLASSES[1])  # what else there is may be taken for people
    counts = number in _CLASSES and marked != 0 and visible >= _LEAST_VISIBLE
    box = x - 1, y - 1, x + width - 1, y + height - 1  # MOT counts pixels from 1
    return int(first), Labelled(label, box, track=str(int(track))), counts


def _mot_images(folder: pathlib.Path) -> tuple[pathlib.Path, str]:
    """Returns the folder of a sequence's frames and their ending, by seqinfo.ini if it is there."""
    info = configparser.ConfigParser(interpolation=None)
    try:
        info.read(folder / "seqinfo.ini", "utf-8")
        section = info["Sequence"] if info.has_section("Sequence") else {}
    except (configparser.Error, UnicodeDecodeError):
        section = {}
    return folder / section.get("imDir", "img1"), section.get("imExt", ".jpg")


def read_frames(path: pathlib.Path, left_out: LeftOut) -> Iterator[Photo]:
    """Yields the frames of sequences with groundtruth.txt, as those of LaSOT and GOT-10k.

    Line n of it is the box of frame n: left, top, width, height. The class is the folder's name, as
    "airplane" of "airplane-1". Frames that full_occlusion.txt, out_of_view.txt or absence.label
    mark with a 1 don't show the object. Only that object of a frame is known. Paths are absolute.

    Args:
      path: a sequence's folder, or one that has such folders below it.
      left_out: counts lines that can't be used.

    Raises:
      DataError: there is no such sequence.
    """
    for folder in _folders_with(path, "groundtruth.txt", "LaSOT", left_out):
        labels, before = folder / "groundtruth.txt", left_out.total
        images = folder / "img" if (folder / "img").is_dir() else folder
        names = sorted(each for each in os.listdir(images) if each.lower().endswith(IMAGE_ENDINGS))
        hidden = _hidden(folder)
        lines = list(_lines(labels, left_out))
        if left_out.total > before:  # not readable
            continue
        if len(lines) != len(names):
            left_out.add(
                "LaSOT: a sequence has not as many boxes as frames",
                f"{labels}: {len(lines)} lines for {len(names)} images in {images}; get it again",
            )
            continue
        label, shown = _label_of(folder), 0
        for (number, line), name in zip(lines, names, strict=True):
            try:
                x, y, width, height = sides = tuple(map(float, line.replace(",", " ").split()))
                if any(abs(each) >= _LARGE for each in sides):  # NaN: the object isn't there
                    raise ValueError
            except ValueError:
                left_out.add(
                    "LaSOT: a line can't be used",
                    f"{labels} line {number}: {line[:40]!r} where left,top,width,height are needed",
                )
                continue
            box = (x, y, x + width, y + height)
            if x == x and y == y and width > 0 and height > 0 and number not in hidden:
                shown += 1
                thing = Labelled(label, box, track=folder.name)
                yield Photo(str(images / name), (thing,), sequence=str(folder), frame=number)
        if not shown and left_out.total == before:
            left_out.add(
                "LaSOT: a sequence never shows its object",
                f"{labels}: has no box of a frame that shows the object; get or make it again",
            )


def _label_of(folder: pathlib.Path) -> str:
    """Returns the class that a sequence's folder is named by; "" for a number alone."""
    name = folder.name.rstrip("0123456789").rstrip("-_ ")
    try:
        return clean(name)
    except ValueError:
        return ""


def _hidden(folder: pathlib.Path) -> set[int]:
    """Returns the numbers, from 1, of frames that don't show the object."""
    hidden = set()
    for name in ("full_occlusion.txt", "out_of_view.txt", "absence.label"):
        if (folder / name).is_file():
            text = (folder / name).read_text("utf-8", errors="replace")
            marks = text.replace(",", " ").split()
            hidden |= {number for number, mark in enumerate(marks, start=1) if mark == "1"}
    return hidden


def _folders_with(
    path: pathlib.Path, name: str, layout: str, left_out: LeftOut
) -> list[pathlib.Path]:
    """Returns the folders, absolute and in order, that have a file of this name.

    Args:
      path: where to look.
      name: the file.
      layout: who lays folders out so.
      left_out: counts folders that can't be read.

    Raises:
      DataError: there is none.
    """
    folders = [base for base, _ in walk(path.absolute(), left_out)]
    found = sorted(each for each in folders if os.path.isfile(each / name))
    if not found:
        raise DataError(
            f"{path}: neither it nor a folder below it has {name}; give a folder in {layout}'s "
            "layout"
        )
    return found


def _lines(path: pathlib.Path, left_out: LeftOut) -> Iterator[tuple[int, str]]:
    """Yields the lines of a file that are not empty, with their numbers from 1."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        left_out.add("tracks: a file can't be read", f"{path}: {reason}; get it again")
