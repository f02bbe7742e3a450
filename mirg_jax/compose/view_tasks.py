"""Tasks of one scene that is seen several times: edited, from elsewhere, in parts, or over time."""

import dataclasses
from collections.abc import Callable

import numpy as np

from mirg_jax.compose import edits, views
from mirg_jax.compose.drafts import Draft, check_apart, grid_box, in_pixels, other_light, pick
from mirg_jax.compose.edits import Corners, Pixels
from mirg_jax.compose.library import Library, NotPossible
from mirg_jax.compose.photos import Labelled, Photo, Sides, is_usable, overlap, scaled
from mirg_jax.compose.wordings import ask

_MOST_AREA = 0.35  # of the picture that an edit may change
_LOSSY = (".jpg", ".jpeg", ".webp", ".avif")


@dataclasses.dataclass(frozen=True)
class _Edit:
    """A picture, the same with one change, the box around it, and what it was made from."""

    before: Pixels
    after: Pixels
    box: Corners
    label: str
    photos: tuple[str, ...]


def _draw_edit(rng: np.random.Generator, library: Library) -> _Edit:
    """Draws a photo and changes one place of it.

    Raises:
      NotPossible: if the change isn't seen, or is too large.
    """
    photo = library.draw(rng, "objects")
    pixels = library.pixels(photo)
    if photo.path.lower().endswith(_LOSSY) and min(pixels.shape[:2]) >= 200:
        # A lossy file's blocks would show where the change begins, so they are blurred first.
        by = rng.uniform(0.8, 0.95)
        pixels = views.shown((0, 0, *edits.size_of(pixels)), by).show(pixels)
    make = _EDITS[int(rng.integers(len(_EDITS)))]
    after, label, more = make(rng, library, photo, pixels)
    box = edits.changed_box(pixels, after)
    if box is None or not edits.is_seen(pixels, after, box):
        raise NotPossible("the change would hardly be seen")
    if not is_usable(box, edits.size_of(pixels)):
        raise NotPossible("the change is too small or too large")
    return _Edit(pixels, after, box, label, (photo.path, *more))


def _object_of(
    rng: np.random.Generator, photo: Photo, size: tuple[int, int]
) -> tuple[Labelled, Corners]:
    """Draws an object that isn't too large for an edit, and its pixels in the picture."""
    things = []
    for each in photo.usable():
        box = edits.whole_pixels(scaled(each.box, photo.pixels, size), size)
        if (box[2] - box[0]) * (box[3] - box[1]) <= _MOST_AREA * size[0] * size[1]:
            things.append((each, box))
    return pick(rng, things)


def _removed(rng: np.random.Generator, library: Library, photo: Photo, pixels: Pixels):
    thing, box = _object_of(rng, photo, edits.size_of(pixels))
    return edits.remove(rng, pixels, box), thing.label, ()


def _recoloured(rng: np.random.Generator, library: Library, photo: Photo, pixels: Pixels):
    thing, box = _object_of(rng, photo, edits.size_of(pixels))
    return edits.recolour(pixels, box, int(rng.integers(64, 193))), thing.label, ()


def _pasted(rng: np.random.Generator, library: Library, photo: Photo, pixels: Pixels):
    donor = library.draw(rng, "objects")
    check_apart(donor, photo)
    thing = pick(rng, donor.usable())
    source, box = in_pixels(library, donor, thing)
    patch = edits.crop(source, edits.whole_pixels(box, edits.size_of(source)))
    width, height = edits.size_of(pixels)
    # A seventh to two fifths of the picture's longer side, in the object's own shape.
    by = rng.uniform(0.14, 0.4) * max(width, height) / max(patch.shape[:2])
    w, h = (max(8, round(side * by)) for side in edits.size_of(patch))
    if w > 0.6 * width or h > 0.6 * height:
        raise NotPossible("the change is too small or too large")
    x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    return edits.paste(pixels, (x, y, x + w, y + h), patch), thing.label, (donor.path,)


_EDITS: tuple[Callable, ...] = (_removed, _recoloured, _pasted)


def diff(rng: np.random.Generator, library: Library) -> Draft:
    """A photo and a copy with one change, in either order; both are made, and written alike."""
    edit = _draw_edit(rng, library)
    image = int(rng.integers(1, 3))
    pair = (edit.before, edit.after) if rng.random() < 0.5 else (edit.after, edit.before)
    return Draft(
        ask(rng, "diff", image=image),
        pair,
        image,
        grid_box(edit.box, edits.size_of(edit.before)),
        edit.label,
        edit.photos,
    )


def view_diff(rng: np.random.Generator, library: Library) -> Draft:
    """The same, but that one image is in other light, and a slightly smaller and shifted window."""
    edit = _draw_edit(rng, library)
    size = edits.size_of(edit.before)
    window = views.draw_window(rng, size, edit.box, rng.uniform(0.86, 0.97))
    if window is None:
        raise NotPossible("the object is too large for a view")
    view = views.shown(window, rng.uniform(0.85, 1.1))
    kept, changed = edit.before, edit.after
    if rng.random() < 0.5:
        kept, changed = changed, kept
    places = [(kept, views.whole(size)), (other_light(rng, view.show(changed)), view)]
    if rng.random() < 0.5:
        places.reverse()
    image = int(rng.integers(1, 3))
    shown = places[image - 1][1]
    return Draft(
        ask(rng, "view_diff", image=image),
        tuple(pixels for pixels, _ in places),
        image,
        grid_box(shown.place(edit.box), shown.size),
        edit.label,
        edit.photos,
    )


def multi_view(rng: np.random.Generator, library: Library) -> Draft:
    """Three or four windows of one photo with an object, some mirrored or in other sizes and light.

    The object is marked in the first.
    """
    photo, thing, pixels, box = _object_for_views(rng, library)
    found = []
    for _ in range(int(rng.integers(3, 5))):
        window = views.draw_window(rng, edits.size_of(pixels), box, rng.uniform(0.5, 0.85))
        if window is None:
            raise NotPossible("the object is too large for a view")
        view = views.shown(window, rng.uniform(0.7, 1.2), mirrored=bool(rng.random() < 0.35))
        found.append(view)
    _check_differ(found, 0.9)
    first, *others = found
    placed = edits.whole_pixels(first.place(box), first.size)
    marked = edits.mark(first.show(pixels), placed)
    shown = (other_light(rng, view.show(pixels)) for view in others)
    return _of_views(rng, "multi_view", photo, thing, found, box, (marked, *shown))


def object_tracking(rng: np.random.Generator, library: Library) -> Draft:
    """Frames of a sequence, or windows that slide over one photo as a camera moves."""
    if library.tracks and rng.random() < 0.8:
        return _frames_of_track(rng, library)
    photo, thing, pixels, box = _object_for_views(rng, library)
    size = edits.size_of(pixels)
    share = rng.uniform(0.5, 0.8)
    ends = [views.draw_window(rng, size, box, share) for _ in range(2)]
    if None in ends:
        raise NotPossible("the object is too large for a view")
    first, last = (np.asarray(each) for each in ends)
    count = int(rng.integers(3, 6))
    steps = (first + (last - first) * n / (count - 1) for n in range(count))
    found = [views.shown(tuple(map(int, np.rint(step))), 1.0) for step in steps]
    _check_differ([found[0], found[-1]], 0.8)
    shown = tuple(view.show(pixels) for view in found)
    return _of_views(rng, "object_tracking", photo, thing, found, box, shown)


def _of_views(
    rng: np.random.Generator,
    task: str,
    photo: Photo,
    thing: Labelled,
    found: list[views.View],
    box: Sides,
    shown: tuple[Pixels, ...],
) -> Draft:
    """Returns the draft that shows an object in the first view and asks for it in another."""
    if not all(view.holds(box) for view in found):
        raise NotPossible("the object leaves the view")
    image = int(rng.integers(2, len(found) + 1))
    first, asked = found[0], found[image - 1]
    return Draft(
        ask(rng, task, image=image, box=grid_box(first.place(box), first.size)),
        shown,
        image,
        grid_box(asked.place(box), asked.size),
        thing.label,
        (photo.path,),
    )


def _object_for_views(
    rng: np.random.Generator, library: Library
) -> tuple[Photo, Labelled, Pixels, Sides]:
    """Draws a photo, an object of it that no other box covers, the pixels and the object's box."""
    photo = library.draw(rng, "objects")
    thing = pick(rng, photo.usable())
    _check_alone(photo, thing)
    return photo, thing, *in_pixels(library, photo, thing)


def _check_alone(photo: Photo, thing: Labelled) -> None:
    """Raises NotPossible if a box may be taken for that of another object."""
    if any(overlap(each.box, thing.box) > 0.5 for each in photo.objects if each != thing):
        raise NotPossible("another object has nearly the same box")


def _check_differ(found: list[views.View], most: float) -> None:
    """Raises NotPossible if two views of a list overlap by more than that, and aren't mirrored."""
    for number, one in enumerate(found):
        for other in found[:number]:
            same = one.mirrored == other.mirrored
            if same and overlap(one.window, other.window) > most:
                raise NotPossible("two views are nearly the same")


def _frames_of_track(rng: np.random.Generator, library: Library) -> Draft:
    track = library.draw_track(rng)
    count = min(int(rng.integers(3, 7)), track.frames)
    if count < 3:
        raise NotPossible("a track has fewer than three frames")
    step = int(rng.integers(1, (track.frames - 1) // (count - 1) + 1))
    start = int(rng.integers(track.frames - step * (count - 1)))
    frames = [library.frame(track, start + step * n) for n in range(count)]
    seen = []
    for frame in frames:
        found = [each for each in frame.objects if each.track == track.name]
        if len(found) != 1:
            raise NotPossible("several objects fit")
        seen.append(found[0])
    image = int(rng.integers(2, count + 1))
    _check_alone(frames[0], seen[0])
    _check_alone(frames[image - 1], seen[image - 1])
    first, asked = frames[0], frames[image - 1]
    return Draft(
        ask(rng, "object_tracking", image=image, box=grid_box(seen[0].box, first.pixels)),
        tuple(frames),
        image,
        grid_box(seen[image - 1].box, asked.pixels),
        seen[0].label,
        tuple(frame.path for frame in frames),
    )


def region(rng: np.random.Generator, library: Library) -> Draft:
    """A photo and one to three parts cut out of it: around objects, or anywhere."""
    photo = library.draw(rng, "objects")
    pixels = library.pixels(photo)
    size = edits.size_of(pixels)
    parts: list[tuple[Corners, str]] = []
    wanted = int(rng.integers(1, 4))
    for _ in range(8 * wanted):
        if len(parts) == wanted:
            break
        box, label = _part(rng, photo, size)
        apart = all(overlap(box, other) < 0.4 for other, _ in parts)
        cut = edits.crop(pixels, box)
        if apart and not edits.is_plain(cut) and not edits.is_repeated(pixels, box):
            parts.append((box, label))
    if not parts:
        raise NotPossible("the photo's parts are plain, or are repeated in it")
    n = int(rng.integers(1, len(parts) + 1))
    box, label = parts[n - 1]
    return Draft(
        ask(rng, "region", n=n),
        (pixels, *(edits.crop(pixels, part) for part, _ in parts)),
        1,
        grid_box(box, size),
        label,
        (photo.path,),
    )


def _part(rng: np.random.Generator, photo: Photo, size: tuple[int, int]) -> tuple[Corners, str]:
    """Draws an object's pixels, or a quarter to half of each side anywhere."""
    if rng.random() < 0.6:
        thing = pick(rng, photo.usable())
        return edits.whole_pixels(scaled(thing.box, photo.pixels, size), size), thing.label
    width, height = (max(8, round(side * rng.uniform(0.25, 0.5))) for side in size)
    width, height = min(width, size[0]), min(height, size[1])
    x, y = int(rng.integers(size[0] - width + 1)), int(rng.integers(size[1] - height + 1))
    return (x, y, x + width, y + height), ""
