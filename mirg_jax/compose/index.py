"""The photos of all sources in one SQLite file, from which they are drawn by what they show.

The file's content depends on the photos and their labels, and on nothing else: not on the order of
files on a disk, nor of rows in files. Photos with the same content are one photo, so that none can
be in both splits.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from PIL import Image

from mirg_jax.compose.photos import (
    Photo,
    Sides,
    all_known,
    from_text,
    merged,
    overlap,
    to_text,
)
from mirg_jax.compose.sources import Source, read_source
from mirg_jax.data.images import ImageRoot, exif_orientation, resolve_image
from mirg_jax.data.left_out import LeftOut
from mirg_jax.errors import DataError
from mirg_jax.files import hashes
from mirg_jax.files.streams import progress_bar

TRAIN, EVAL = 0, 1
ANY, ONE, SEVERAL = 0, 1, 2  # how often a photo shows what it is listed under
_MOST_SEVERAL = 5
_WHOLE = 1 << 15  # bytes; larger files are told apart by their size and samples
_TABLES = """
CREATE TABLE found (path TEXT, source INTEGER, data TEXT);
CREATE TABLE looked (path TEXT PRIMARY KEY, digest TEXT, width INTEGER, height INTEGER);
CREATE TABLE photo (
    id INTEGER PRIMARY KEY, split INTEGER, sources TEXT, grp TEXT, digest TEXT, path TEXT, data TEXT
);
CREATE TABLE listed (split INTEGER, name TEXT, times INTEGER, photo INTEGER);
CREATE TABLE seen (split INTEGER, sequence TEXT, track TEXT, frame INTEGER, photo INTEGER);
CREATE TABLE vocabulary (source INTEGER, label TEXT, PRIMARY KEY (source, label));
"""
_RANKED = """
CREATE TABLE shows (
    split INTEGER, name TEXT, times INTEGER, n INTEGER, photo INTEGER,
    PRIMARY KEY (split, name, times, n)
) WITHOUT ROWID;
INSERT INTO shows SELECT split, name, times,
    ROW_NUMBER() OVER (PARTITION BY split, name, times ORDER BY photo) - 1, photo
    FROM listed ORDER BY split, name, times, photo;
CREATE TABLE sighting (
    split INTEGER, track INTEGER, n INTEGER, name TEXT, photo INTEGER,
    PRIMARY KEY (split, track, n)
) WITHOUT ROWID;
INSERT INTO sighting SELECT split,
    DENSE_RANK() OVER (PARTITION BY split ORDER BY sequence, track) - 1,
    ROW_NUMBER() OVER (PARTITION BY split, sequence, track ORDER BY frame, photo) - 1, track, photo
    FROM seen;
DROP TABLE found; DROP TABLE looked; DROP TABLE listed; DROP TABLE seen;
"""


def build_index(
    path: pathlib.Path,
    sources: Sequence[Source],
    root: ImageRoot,
    *,
    seed: int,
    eval_share: float,
    left_out: LeftOut,
) -> None:
    """Writes the file.

    Args:
      path: the file to write.
      sources: where labels come from.
      root: folder that images are relative to.
      seed: seed of the split.
      eval_share: share of the photos, and of the sequences, that is for evaluation.
      left_out: counts what can't be used.

    Raises:
      DataError: if a source can't be used, or no photo is left.
    """
    with contextlib.closing(sqlite3.connect(path)) as kept:
        kept.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + _TABLES)
        for number, source in enumerate(sources):
            _add_source(kept, number, source, root, left_out)
        _look_at_files(kept, root, left_out)
        _add_photos(kept, seed, eval_share, left_out)
        kept.executescript(_RANKED)
        (count,) = kept.execute("SELECT COUNT(*) FROM photo").fetchone()
        if not count:
            reasons = left_out.to_json()
            first = reasons[0]["first"] if reasons else "the labels name none; give others"
            raise DataError(f"no photo can be used; {first}")
        kept.commit()


def _add_source(
    kept: sqlite3.Connection, number: int, source: Source, root: ImageRoot, left_out: LeftOut
) -> None:
    vocabulary: set[str] = set()

    def rows() -> Iterator[tuple[str, int, str]]:
        for photo in read_source(source, root, left_out):
            if photo.complete:
                vocabulary.update(each.label for each in photo.objects if each.label)
            yield photo.path, number, to_text(photo)

    bar = progress_bar(rows(), desc=f"labels, {source.kind}", unit="photo", mininterval=1)
    kept.executemany("INSERT INTO found VALUES (?, ?, ?)", bar)
    labels = ((number, label) for label in sorted(vocabulary))
    kept.executemany("INSERT INTO vocabulary VALUES (?, ?)", labels)


def _look_at_files(kept: sqlite3.Connection, root: ImageRoot, left_out: LeftOut) -> None:
    """Reads each image's size, and a digest that tells it from others."""
    kept.execute("CREATE INDEX of_path ON found (path)")
    paths = kept.execute("SELECT DISTINCT path FROM found ORDER BY path")
    add = kept.cursor()
    for (path,) in progress_bar(paths, desc="images", unit="photo", mininterval=1):
        try:
            add.execute("INSERT INTO looked VALUES (?, ?, ?, ?)", (path, *look_at(root, path)))
        except DataError as error:
            left_out.add("an image can't be used", str(error))
    kept.execute("CREATE INDEX of_digest ON looked (digest)")


def look_at(root: ImageRoot, path: str) -> tuple[str, int, int]:
    """Returns a digest of an image's file by samples, its width and its height.

    Raises:
      DataError: it can't be read, or is to be turned by its EXIF orientation, so that it isn't
        known what its boxes are relative to.
    """
    return _look_at_file(resolve_image(root, path))


def _look_at_file(file: pathlib.Path) -> tuple[str, int, int]:
    """Does the same for a file."""
    try:
        with open(file, "rb") as opened:
            digest, length = hashlib.blake2b(digest_size=16), opened.seek(0, os.SEEK_END)
            opened.seek(0)
            if length <= _WHOLE:
                digest.update(opened.read())
            else:
                hashes.add_samples(digest, opened, "", [(0, length)])
            opened.seek(0)
            with Image.open(opened) as image:
                # Pillow decodes all of a PNG to look for metadata behind the pixels.
                has_none = image.format == "PNG" and "exif" not in image.info
                size, orientation = image.size, 1 if has_none else exif_orientation(image)
    except OSError as error:
        reason = error.strerror or "no image of a known format"
        raise DataError(f"image {str(file)!r}: {reason}; check the image root, or get it") from None
    except (Image.DecompressionBombError, ValueError, SyntaxError) as error:
        raise DataError(f"image {str(file)!r}: {' '.join(str(error).split())}") from None
    if orientation != 1:
        raise DataError(
            f"image {str(file)!r}: has an EXIF orientation, and its boxes may be of the stored or "
            "the upright image; save it without"
        )
    return digest.hexdigest(), *size


def read_vocabularies(kept: sqlite3.Connection) -> dict[int, frozenset[str]]:
    """Returns the classes of each source that has a box for every object of them."""
    found: dict[int, set[str]] = {}
    for source, label in kept.execute("SELECT source, label FROM vocabulary"):
        found.setdefault(source, set()).add(label)
    return {source: frozenset(labels) for source, labels in found.items()}


def _add_photos(kept: sqlite3.Connection, seed: int, eval_share: float, left_out: LeftOut) -> None:
    vocabularies = read_vocabularies(kept)
    rows = kept.execute(
        "SELECT digest, width, height, source, data FROM looked JOIN found USING (path) "
        "ORDER BY digest, path, source, data"
    )
    add = kept.cursor()
    for digest, same in itertools.groupby(rows, key=lambda row: row[0]):
        found = list(_with_sizes(same, left_out))
        if not found:
            continue
        photo = merged(photo for _, photo in found)
        sources = sorted({source for source, each in found if each.complete})
        group = photo.sequence or digest
        split = EVAL if _share(seed, group) < eval_share else TRAIN
        names = (vocabularies.get(each, frozenset()) for each in sources)
        known = all_known(photo.looked_for, *names)
        values = split, json.dumps(sources), group, digest, photo.path, to_text(photo)
        number = add.execute("INSERT INTO photo VALUES (NULL, ?, ?, ?, ?, ?, ?)", values).lastrowid
        photo = dataclasses.replace(photo, known=known)
        listed = sorted({(split, name, times, number) for name, times in _names(photo)})
        add.executemany("INSERT INTO listed VALUES (?, ?, ?, ?)", listed)
        tracks = sorted({each.track for each in photo.usable()} - {""}) if photo.sequence else []
        seen = [(split, photo.sequence, track, photo.frame, number) for track in tracks]
        add.executemany("INSERT INTO seen VALUES (?, ?, ?, ?, ?)", seen)


def _with_sizes(rows: Iterable[tuple], left_out: LeftOut) -> Iterator[tuple[int, Photo]]:
    """Yields sources and photos with the file's size, and boxes that lie within it."""
    for _, width, height, source, data in rows:
        photo = from_text(data)
        if photo.size not in (None, (width, height)):
            left_out.add(
                "an image hasn't the size that its labels say",
                f"image {photo.path!r}: has {width}x{height} pixels, its labels say "
                f"{photo.size[0]}x{photo.size[1]}; give the images that were labelled",
            )
            continue
        objects, unsure = [], set(photo.unsure)
        for each in photo.objects:
            box = _within(each.box, width, height)
            if box is None:
                left_out.add(
                    "a box lies outside its image",
                    f"image {photo.path!r}: the box {[*map(round, each.box)]} of "
                    f"{each.label or 'an object'} isn't within {width}x{height}; correct it",
                )
                unsure |= {each.label} - {""}
            else:
                objects.append(dataclasses.replace(each, box=box))
        yield (
            source,
            dataclasses.replace(
                photo, size=(width, height), objects=tuple(objects), unsure=frozenset(unsure)
            ),
        )


def _within(box: Sides, width: int, height: int) -> Sides | None:
    """Returns a box cut at the image's edges; None if that takes more than a fifth of it."""
    x1, y1, x2, y2 = box
    cut = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    if cut[0] >= cut[2] or cut[1] >= cut[3] or overlap(cut, box) < 0.8:
        return None
    return cut


def _names(photo: Photo) -> Iterator[tuple[str, int]]:
    """Yields what a photo is listed under, and how often it shows it."""
    yield "photo", ANY
    usable = photo.usable()
    if usable:
        yield "objects", ANY
    if len(usable) > 1:
        yield "objects", SEVERAL
    counts = {each.label: photo.count(each.label) for each in usable if each.label}
    for each in usable:
        if each.phrases and each.label:
            yield "phrases", ANY
        if not each.label:
            continue
        yield f"label:{each.label}", ANY
        if each.kind:
            yield f"kind:{each.kind}", ANY
        if each.attributes:
            yield f"attributes:{each.label}", ANY
        for name, value in each.attributes:
            yield f"attribute:{name}={value}", ANY
        count = counts[each.label]
        if count == 1:
            yield f"label:{each.label}", ONE
        elif count and count <= _MOST_SEVERAL:
            yield f"label:{each.label}", SEVERAL


def _share(seed: int, key: str) -> float:
    """Returns a number in 0..1 that follows from a seed and a text."""
    digest = hashlib.blake2b(f"{seed} {key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def check_photos(path: pathlib.Path, root: ImageRoot) -> None:
    """Checks that photos are still those that the file was written of.

    Only files that were touched since then are read.

    Raises:
      DataError: if one has another content, or can't be read.
    """
    since = path.stat().st_mtime
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as kept:
        rows = kept.execute("SELECT digest, path FROM photo")
        for digest, photo in progress_bar(rows, desc="images", unit="photo", mininterval=1):
            file = resolve_image(root, photo)
            if os.stat(file).st_ctime >= since and _look_at_file(file)[0] != digest:
                raise DataError(
                    f"image {str(file)!r}: has changed since its labels were read; put the former "
                    "one back to go on, or give another --output_dir"
                )


def facts_of(path: pathlib.Path) -> dict[str, Any]:
    """Returns how many photos each split has, and a digest of all photos and their labels."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as kept:
        counts = dict(kept.execute("SELECT split, COUNT(*) FROM photo GROUP BY split"))
        digest = hashlib.blake2b(digest_size=16)
        for (data,) in kept.execute("SELECT data FROM photo ORDER BY id"):
            digest.update(data.encode() + b"\n")
    photos = {"train": counts.get(TRAIN, 0), "eval": counts.get(EVAL, 0)}
    return {"photos": photos, "labels_digest": digest.hexdigest()}
