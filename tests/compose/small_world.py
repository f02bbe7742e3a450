"""Photos whose every pixel is known, in COCO's form: textured boxes on a textured ground."""

import colorsys
import json
import pathlib

import numpy as np
from PIL import Image

from mirg_jax.compose import compose
from mirg_jax.compose.sources import Source
from mirg_jax.data.images import ImageRoot

CLASSES = {
    "dog": "animal",
    "cat": "animal",
    "horse": "animal",
    "cup": "kitchen",
    "fork": "kitchen",
    "ball": "sports",
    "kite": "sports",
    "lamp": "indoor",
}


def texture(rng, width, height, hue):
    """Blocks of random brightness in one hue, unlike any other piece."""
    low = rng.uniform(0.35, 1.0, (max(2, height // 9), max(2, width // 9)))
    colour = np.array(colorsys.hsv_to_rgb(hue, 0.85, 1.0))
    block = (255 * low[..., None] * colour).astype(np.uint8)
    return np.asarray(Image.fromarray(block).resize((width, height), Image.Resampling.BICUBIC))


def photo(rng, size, count):
    """Pixels, and boxes that don't touch."""
    width, height = size
    pixels = texture(rng, width, height, rng.uniform()).copy()
    boxes = []
    for _ in range(200):
        if len(boxes) == count:
            break
        w, h = (int(side * rng.uniform(0.12, 0.3)) for side in size)
        x, y = int(rng.integers(width - w)), int(rng.integers(height - h))
        if all(x + w < a or c < x or y + h < b or d < y for a, b, c, d in boxes):
            boxes.append((x, y, x + w, y + h))
            pixels[y : y + h, x : x + w] = texture(rng, w, h, rng.uniform())
    return pixels, boxes


def write(folder: pathlib.Path, seed=0, photos=48, size=(208, 160), ending="png", attributes=False):
    """Writes images/ and instances.json; returns what the latter holds."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    names = list(CLASSES)
    found = {"images": [], "annotations": [], "categories": []}
    for number, name in enumerate(names, start=1):
        found["categories"].append({"id": number, "name": name, "supercategory": CLASSES[name]})
    for number in range(photos):
        pixels, boxes = photo(rng, size, int(rng.integers(1, 5)))
        file_name = f"{number:04d}.{ending}"
        Image.fromarray(pixels).save(folder / "images" / file_name)
        width, height = size
        image = {"id": 100 + number, "file_name": file_name, "width": width, "height": height}
        found["images"].append(image)
        for x1, y1, x2, y2 in boxes:
            row = {
                "id": len(found["annotations"]),
                "image_id": 100 + number,
                "category_id": int(rng.integers(len(names))) + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "iscrowd": 0,
            }
            if attributes:
                row["attributes"] = {"color": str(rng.choice(["red", "blue", "green", "grey"]))}
            found["annotations"].append(row)
    (folder / "instances.json").write_text(json.dumps(found))
    return found


def write_mot(folder: pathlib.Path, frames=12):
    """Writes a sequence with two moving tracks; returns boxes by frame and track."""
    rng = np.random.default_rng(4)
    (folder / "gt").mkdir(parents=True)
    (folder / "img1").mkdir()
    things = {1: texture(rng, 30, 24, 0.1), 2: texture(rng, 24, 30, 0.5)}
    truth, lines = {}, []
    for frame in range(1, frames + 1):
        pixels = texture(rng, 160, 120, 0.8).copy()
        boxes = {
            1: (8 * frame, 10, 8 * frame + 30, 34),
            2: (130 - 8 * frame, 70, 154 - 8 * frame, 100),
        }
        for track, (x1, y1, x2, y2) in boxes.items():
            pixels[y1:y2, x1:x2] = things[track]
            lines.append(f"{frame},{track},{x1 + 1},{y1 + 1},{x2 - x1},{y2 - y1},1,1,1.0")
        truth[frame] = boxes
        Image.fromarray(pixels).save(folder / f"img1/{frame:06d}.jpg", quality=95)
    (folder / "gt/gt.txt").write_text("\n".join(lines))
    return truth


def settings(folder, **changes):
    """Settings to compose what `write` has written."""
    source = Source("coco", folder / "instances.json", "images")
    values = {"eval_share": 0.3, "seed": 7} | changes
    return compose.Settings((source,), ImageRoot(folder), **values)


def in_pixels(row, size):
    """The answer in pixels of its image, of a width and height."""
    x1, y1, x2, y2 = row["targets"][0]["box"]
    return x1 * size[0] / 1000, y1 * size[1] / 1000, x2 * size[0] / 1000, y2 * size[1] / 1000


def near(box, other, most=1.0):
    return max(abs(a - b) for a, b in zip(box, other, strict=True)) <= most
