"""The picture report: boxes in their places, nothing unescaped, nothing from outside."""

import base64
import html.parser
import io
import re
import xml.etree.ElementTree as ElementTree

import pytest
from PIL import Image

from mirg_jax.evaluation import report, scoring
from mirg_jax.grounding import grammar

ATTACK = (
    "<script>alert(1)</script><img src=x onerror='alert(2)'>\"' $title & \ud800 </svg></article>"
)
TRUTH, PREDICTED = (0.1, 0.2, 0.5, 0.6), (200, 300, 1000, 900)


class Page(html.parser.HTMLParser):
    """Collects tags, and fails on one that closes what is not open."""

    VOID = {"meta", "rect", "line", "polyline", "image"}

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def image_root(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    for name, size, colour in (("a.jpg", (640, 320), "blue"), ("b.png", (90, 120), "white")):
        Image.new("RGB", size, colour).save(root / name)
    return root


def row(task="diff", images=("a.jpg", "b.png"), question="Where?", answer=TRUTH, info=""):
    return {
        "task": task,
        "images": list(images),
        "question": question,
        "answer": list(answer),
        "additional_info": info,
    }


def responded(image=None, thinking="hm"):
    name = f"<bbox_id>[{image}-1]</bbox_id>" if image else ""
    box = "<|object_ref_start|>dog<|object_ref_end|>" + grammar.format_box(PREDICTED)
    return grammar.format_response(thinking, name + box)


def write(tmp_path, rows, runs, image_root, title="A run", **options):
    runs = {
        name: report.Run(responses, scoring.score(rows, responses))
        for name, responses in runs.items()
    }
    path = tmp_path / "out" / "report.html"
    report.write_report(path, title, rows, runs, image_root, **options)
    return path.read_text(encoding="utf-8")


def overlays(text):
    """For every picture in order: {class: (x, y, width, height) in per cent}."""
    pictures = []
    for svg in re.findall(r'<svg width="\d+" height="\d+"><image.*?</svg>', text):
        tree = ElementTree.fromstring(svg)
        assert tree[0].get("width") == tree.get("width")
        assert tree[0].get("height") == tree.get("height")
        pictures.append(
            {
                rect.get("class"): tuple(
                    float(rect.get(key).removesuffix("%")) for key in ("x", "y", "width", "height")
                )
                for rect in tree.iter("rect")
            }
        )
    return pictures


GREEN, RED = (10, 20, 40, 40), (20, 30, 80, 60)


@pytest.mark.parametrize(
    ("question", "predicted_image", "expected"),
    [
        ("Find it in the second image.", 2, [{}, {"truth": GREEN, "predicted": RED}]),
        ("Find it in the second image.", 1, [{"predicted": RED}, {"truth": GREEN}]),
        ("Find it in the second image.", None, [{}, {"truth": GREEN, "predicted": RED}]),
        ("Find it in the second image.", 7, [{}, {"truth": GREEN, "predicted": RED}]),
        ("Find it.", 2, [{"truth": GREEN}, {"predicted": RED}]),
        ("Find it.", None, [{"truth": GREEN, "predicted": RED}, {}]),
    ],
)
def test_boxes_lie_in_their_images(tmp_path, image_root, question, predicted_image, expected):
    rows = [row(question=question)]
    text = write(tmp_path, rows, {"mine": [responded(predicted_image)]}, image_root)
    assert overlays(text) == expected


def test_thumbnails_are_inside_the_file_and_small(tmp_path, image_root):
    text = write(tmp_path, [row()], {"mine": [responded(1)]}, image_root)
    sources = [image["href"] for image in Page(text).all("image")]
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    images = [Image.open(io.BytesIO(base64.b64decode(s.split(",")[1]))) for s in sources]
    assert [image.size for image in images] == [(224, 112), (90, 120)]
    assert images[0].getpixel((5, 5))[2] > 200  # blue first


def test_an_inverted_truth_and_boxes_outside_are_drawn_within_the_image(tmp_path, image_root):
    rows = [row(answer=(0.5, 0.6, 0.1, 0.2)), row(answer=(0.5, 0.2, 1.048, 0.6))]
    text = write(tmp_path, rows, {"mine": [None, None]}, image_root)
    assert sorted(picture["truth"] for picture in overlays(text) if picture) == [
        (10, 20, 40, 40),
        (50, 20, 50, 40),
    ]
    assert "no response" in text


def test_everything_is_escaped_and_nothing_is_loaded(tmp_path, image_root):
    rows = [
        row(task=ATTACK, question=ATTACK, images=("a.jpg", ATTACK.replace("\ud800", ""))),
        row(question="$curves ${examples}"),
    ]
    runs = {ATTACK: [responded(1, thinking=ATTACK), ATTACK], "other": [ATTACK, None]}
    curves = {ATTACK: [(0, 1.0), (1, 2.0)]}
    page = Page(write(tmp_path, rows, runs, image_root, title=ATTACK, curves=curves))

    assert len(page.all("script")) == 1 and not page.all("img") and not page.all("link")
    assert len(page.all("article")) == 2 and page.open == []
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    shown = "".join(page.text)
    assert shown.count("<script>alert(1)</script>") >= 8  # as text, wherever it was given
    assert "$curves ${examples}" in shown


def test_filters_and_runs(tmp_path, image_root):
    hit = grammar.format_response("", grammar.format_box((100, 200, 500, 600)))
    rows = [row("region"), row("diff"), row("diff")]
    runs = {"old": [None, hit, hit], "new": [hit, hit, responded()]}
    page = Page(write(tmp_path, rows, runs, image_root))
    cards = {(card["data-task"], card["data-results"]) for card in page.all("article")}
    assert cards == {("region", "0-miss 1-hit"), ("diff", "0-hit 1-hit"), ("diff", "0-hit 1-miss")}
    options = {option["value"] for option in page.all("option")}
    assert options == {"", "region", "diff", "0-hit", "0-miss", "1-hit", "1-miss"}
    text = " ".join(page.text)
    assert "Region" in text and "66.67" in text  # the table's rate over all rows


def test_objects_of_a_response_are_coloured(tmp_path, image_root):
    text = write(tmp_path, [row()], {"mine": [responded(2)]}, image_root)
    assert '<span class="id">&lt;bbox_id&gt;[2-1]&lt;/bbox_id&gt;</span>' in text
    assert "dog&lt;|object_ref_end|&gt;</span>" in text
    assert '<span class="box">&lt;|box_start|&gt;(200,300),(1000,900)&lt;|box_end|&gt;' in text


def test_examples_are_limited_and_spread_over_tasks(tmp_path, image_root):
    rows = [row("region")] * 40 + [row("diff")] * 5 + [row("reasoning")]
    page = Page(write(tmp_path, rows, {"mine": [None] * 46}, image_root, max_examples=7))
    tasks = [card["data-task"] for card in page.all("article")]
    assert {task: tasks.count(task) for task in tasks} == {"region": 3, "diff": 3, "reasoning": 1}


def test_a_missing_picture_is_said_and_not_fatal(tmp_path, image_root):
    text = write(
        tmp_path, [row(images=("a.jpg", "gone.jpg"))], {"mine": [responded(2)]}, image_root
    )
    assert len(overlays(text)) == 1
    assert any("gone.jpg" in piece for piece in Page(text).text)


def test_curves(tmp_path, image_root):
    curves = {
        "loss": [(0, 3.0), (10, 1.0), (20, float("nan")), (30, 2.0)],
        "flat": [(5, 0.0)],
        "none": [],
        "long": [(step, step**2) for step in range(5000)],
    }
    text = write(tmp_path, [row()], {"mine": [None]}, image_root, curves=curves)
    lines = [line["points"] for line in Page(text).all("polyline")]
    assert len(lines) == 3
    points = [tuple(map(float, point.split(","))) for point in lines[0].split()]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x0 < x1 < x2 and (x1 - x0) == pytest.approx((x2 - x0) / 3, abs=0.1)
    assert y0 < y2 < y1 and y2 == pytest.approx((y0 + y1) / 2, abs=0.1)  # up is more
    assert len(lines[2].split()) <= 500
    assert "loss: 2 at 30 (1 values not finite)" in text


def test_a_report_without_runs_shows_the_curves(tmp_path, image_root):
    page = Page(write(tmp_path, [row()], {}, image_root, curves={"loss": [(0, 1.0), (1, 0.5)]}))
    assert len(page.all("polyline")) == 1 and not page.all("article")
