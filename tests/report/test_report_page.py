"""A report in a real browser: opened from disk, chosen from, sorted, walked through, looked at."""

import json
import os
import time

import numpy as np
import pytest
from bench_rows import rows_of
from conftest import drawn
from PIL import Image

from mirg_jax.grounding import grammar
from mirg_jax.grounding.grammar import GroundedObject
from mirg_jax.mig_bench import scoring
from mirg_jax.mig_bench.benchmark import load_benchmark
from mirg_jax.report import report

ATTACK = (
    "<img src='http://example.com/x' onerror='window.bad = 1'></script>"
    "<script>window.bad = 2</script>"
)
TASKS = ("diff", "region", "group_grounding")
TRUTH = (0.25, 0.5, 0.75, 0.9)


ASKED = grammar.format_box((500, 0, 1000, 100))


def trajectory(box, image=2, thought="Look."):
    first = GroundedObject((100, 100, 300, 600), 1, 1, "red ring")
    found = GroundedObject(tuple(box), image, 1, "dog")
    thinking = f"{thought} {grammar.format_object(first)} and {grammar.format_object(found)}"
    return grammar.format_response(thinking, grammar.format_answer([found]))


HIT = trajectory((250, 500, 750, 900))  # IoU 1
NEAR = trajectory((250, 500, 750, 720))  # 0.55
WRONG = trajectory((250, 500, 750, 800), image=1)  # 0.75, in another image
OFF = trajectory((0, 0, 200, 200))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A report of 240 rows and two runs, with a group of GRPO."""
    folder = tmp_path_factory.mktemp("report")
    for n, size in enumerate([(300, 200), (200, 300), (60, 40)], start=1):
        Image.new("RGB", size, (40 * n, 90, 120)).save(folder / f"{n}.png")
    rows = [
        {
            "task": TASKS[index % 3],
            "images": ["1.png", "2.png", "gone.png" if index == 9 else "3.png"],
            "question": f"Question {index}: {ASKED} find it in the second image.",
            "answer": TRUTH,
            "additional_info": "the second image",
        }
        for index in range(240)
    ]
    rows = rows_of(rows)
    old = [OFF] * 240
    new = [NEAR] * 240
    new[7], new[8], new[9] = HIT, WRONG, None
    old[7], old[100] = NEAR, HIT
    new[100] = "no format, (0,0),(9,9)"
    runs = {
        name: report.Responses(given, scoring.score(rows, given))
        for name, given in {"old": old, "new": new}.items()
    }
    training = folder / "grpo"
    (training / "groups").mkdir(parents=True)
    (training / "config.json").write_text(json.dumps({"data": {"image_root": str(folder)}}))
    steps = [{"step": n, "loss": 0.1 * n, "reward": 2.0 + n, "kl": 0.01} for n in (1, 2, 3)]
    (training / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    group = {
        "id": "q1",
        "task": "diff",
        "images": ["1.png", "2.png"],
        "question": "Where?",
        "targets": [[2, 250, 500, 750, 900]],
        "completions": [
            {"text": text, "reward": reward, "object": reward - 2, "advantage": reward - 2.5}
            for text, reward in ((OFF, 2.0), (NEAR, 2.55), (HIT, 3.0))
        ],
    }
    (training / "groups/step_000021.jsonl").write_text(json.dumps(group) + "\n")
    path = folder / "report.html"
    report.write_report(path, "Two runs", rows, runs, folder, training={"grpo": training})
    return folder


def titles(page):
    return page.locator("#list .where").all_inner_texts()


def near(*boxes):
    return [pytest.approx(box, abs=0.005) for box in boxes]


def tiles(page):
    """The gallery's cards: of what, and with what result."""
    subjects = page.locator(".tile .subject").all_inner_texts()
    return list(zip(subjects, page.locator(".tile .badge").all_inner_texts(), strict=True))


def in_tile(page, number, kind):
    """For every box of a kind in a card of the gallery, what `drawn` says of the dialog's."""
    tile = page.locator(".tile").nth(number)
    return tile.evaluate(
        """(tile, kind) => [...tile.querySelectorAll('svg')].flatMap((svg, i) => {
            const outer = svg.querySelector('.frame').getBoundingClientRect();
            return [...svg.querySelectorAll('rect.' + kind)].map(rect => {
                const box = rect.getBoundingClientRect();
                return [i + 1, (box.left - outer.left) / outer.width,
                        (box.top - outer.top) / outer.height,
                        (box.right - outer.left) / outer.width,
                        (box.bottom - outer.top) / outer.height];
            });
        })""",
        kind,
    )


def test_the_page_opens_with_a_gallery(visit, folder):
    page = visit(folder / "report.html")
    hit, exact, wrong = "✓ hit, IoU 0.55", "✓ hit, IoU 1.00", "✓ hit, IoU 0.75, wrong image"
    none, unread = "✗ miss, IoU 0.00, no response", "✗ miss, IoU 0.00, wrong image, bad format"
    assert tiles(page) == [
        *[("Static", hit)] * 3, ("Static", none),
        ("Region", hit), ("Region", hit), ("Region", exact), ("Region", unread),
        ("GG", hit), ("GG", hit), ("GG", wrong), ("GG", hit),
    ]  # fmt: skip
    assert in_tile(page, 0, "truth") == near([2, *TRUTH])
    assert in_tile(page, 0, "answer") == near([2, 0.25, 0.5, 0.75, 0.72])  # of the last run
    assert in_tile(page, 0, "thought") == near([1, 0.1, 0.1, 0.3, 0.6])  # the other is the answer
    assert in_tile(page, 10, "answer") == near([1, 0.25, 0.5, 0.75, 0.8])
    assert in_tile(page, 3, "answer") == [] and page.locator(".tile svg.unread").count() == 1
    assert page.locator(".tile image").count() == 12 * 3 - 1  # that of row 9 is gone
    boxes = [page.locator(".tile svg").nth(i).bounding_box() for i in range(3)]
    assert len({box["y"] for box in boxes}) == 1  # side by side
    question = page.locator(".tile .question").first.inner_text()
    assert question == "Question 0: (500,0),(1000,100) find it in the second image."
    top = page.locator(".tile").first.bounding_box()["y"]
    assert top < 150 and top < page.locator("table").first.bounding_box()["y"]
    legend = page.locator("#chosen").inner_text()
    assert "answer of new" in legend and "12 of 240 examples" in legend


def test_an_example_of_the_gallery_opens_and_closes(visit, folder):
    page = visit(folder / "report.html")
    page.locator(".tile").nth(3).click()
    dialog = page.locator("dialog")
    assert dialog.locator("h2").inner_text() == "Row 9, Static"
    assert dialog.locator(".place").inner_text() == "4 of 12"
    assert page.locator("article.current b").first.inner_text() == "new"
    page.keyboard.press("j")
    assert drawn(page, "answer") == near([2, 0.25, 0.5, 0.75, 0.72])  # of the last run, as outside
    assert dialog.locator(".place").inner_text() == "5 of 12"
    page.get_by_label("Search").fill("nothing has this")  # the list may be empty
    for _ in range(20):
        page.keyboard.press("j")
    assert dialog.locator(".place").inner_text() == "12 of 12"
    page.keyboard.press("Escape")
    page.locator("li:nth-child(12) .tile:focus").wait_for()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("k")
    page.locator("li:nth-child(10) .tile:focus").wait_for()
    page.keyboard.press("o")
    assert dialog.locator(".place").inner_text() == "10 of 12"


def test_a_gallery_without_pictures_has_blank_frames(visit, folder, tmp_path):
    rows = rows_of(
        [{"task": "diff", "images": ["1.png"] * n, "question": "Where?", "answer": TRUTH}
         for n in (1, 2, 6)]
    )  # fmt: skip
    runs = {"mine": report.Responses([HIT] * 3, scoring.score(rows, [HIT] * 3))}
    report.write_report(tmp_path / "report.html", "", rows, runs)
    page = visit(tmp_path / "report.html")
    assert page.locator(".tile image").count() == 0
    frames = [frame.bounding_box() for frame in page.locator(".tile .frame").all()]
    assert len(frames) == 9 and all(frame["width"] > 60 for frame in frames)
    assert len({frame["y"] for frame in frames[3:]}) == 2  # six in two lines
    assert in_tile(page, 1, "answer") == near([2, *TRUTH])


def test_choosing_and_sorting(visit, folder):
    page = visit(folder / "report.html")
    assert page.locator("h1").inner_text() == "Two runs"
    assert len(titles(page)) == 100 and titles(page)[0] == "Row 0, Static"
    assert page.locator("#count").inner_text() == "1–100 of 240, of 240 in all"
    page.get_by_label("Next page").click()
    page.get_by_label("Next page").click()
    assert titles(page)[-1] == "Row 239, GG" and page.get_by_label("Next page").is_disabled()

    page.get_by_label("Task").select_option("Region")
    assert page.locator("#count").inner_text() == "1–80 of 80, of 240 in all"
    page.get_by_label("Task").select_option("all")
    for label, value, expected in [
        ("Result of new", "wrong image", [8, 100]),
        ("Result of new", "bad format", [100]),
        ("Result of new", "no response", [9]),
        ("Result of old", "hit", [7, 100]),
    ]:
        page.get_by_label(label).select_option(value)
        assert [int(title.split()[1].strip(",")) for title in titles(page)] == expected
        page.get_by_label(label).select_option("all")
    page.get_by_label("Result of old").select_option("miss")  # what the new one gained
    page.get_by_label("Result of new").select_option("hit")
    assert page.locator("#count").inner_text() == "1–100 of 237, of 240 in all"
    page.get_by_label("Result of old").select_option("all")
    page.get_by_label("Result of new").select_option("all")
    page.get_by_label("Hits").select_option("they differ")
    assert "of 238," in page.locator("#count").inner_text()
    page.get_by_label("Hits").select_option("all")

    page.get_by_label("Sort by").select_option("IoU of new")
    assert titles(page)[0] in ("Row 9, Static", "Row 100, Region")
    page.get_by_label("largest first").check()
    assert titles(page)[:2] == ["Row 7, Region", "Row 8, GG"]
    page.get_by_label("minus").select_option("IoU of old")
    assert titles(page)[0] == "Row 8, GG"
    page.get_by_label("largest first").uncheck()
    assert titles(page)[0] == "Row 100, Region"  # where the new run lost most

    page.get_by_label("Search").fill("question 23:")
    assert titles(page) == ["Row 23, GG"]
    page.get_by_label("Search").fill("nothing has this")
    assert titles(page) == [] and page.locator("#count").inner_text().startswith("none")


def test_boxes_are_drawn_where_they_are_said_to_be(visit, folder):
    page = visit(folder / "report.html")
    page.locator("#list button").nth(7).click()
    assert page.locator("dialog h2").inner_text() == "Row 7, Region"
    assert drawn(page, "truth") == near([2, *TRUTH])
    assert drawn(page, "answer") == near([2, 0.25, 0.5, 0.75, 0.72])  # of the first run
    assert drawn(page, "other") == near([2, *TRUTH])
    thoughts = near([1, 0.1, 0.1, 0.3, 0.6], [2, 0.25, 0.5, 0.75, 0.72])
    assert drawn(page, "thought") == thoughts
    assert drawn(page, "asked") == near([1, 0.5, 0, 1, 0.1])
    pictures = page.locator("dialog svg image")
    assert pictures.count() == 3
    shape = page.locator("dialog svg").nth(1).bounding_box()
    assert shape["width"] / shape["height"] == pytest.approx(200 / 300, rel=0.01)

    page.keyboard.press("2")  # the other answer's boxes
    assert drawn(page, "answer") == near([2, *TRUTH])
    assert page.locator("article.current b").first.inner_text() == "new"
    page.locator("article").nth(0).get_by_role("button").click()
    assert drawn(page, "answer") == near([2, 0.25, 0.5, 0.75, 0.72])

    page.keyboard.press("j")
    page.keyboard.press("2")
    assert page.locator("dialog h2").inner_text() == "Row 8, GG"
    assert drawn(page, "answer") == near([1, 0.25, 0.5, 0.75, 0.8])
    assert drawn(page, "truth") == near([2, *TRUTH])
    page.keyboard.press("j")
    assert "no such file" in page.locator("dialog .problem").inner_text()
    assert page.locator("dialog article").nth(1).inner_text().endswith("no response")


def test_an_object_has_one_colour_and_lights_up_as_one(visit, folder):
    page = visit(folder / "report.html")
    page.locator("#list button").nth(7).click()
    text = page.locator("article.current .text")
    assert "[2-1] dog (250,500),(750,720)" in text.inner_text().replace("[2-1]dog(", "[2-1] dog (")
    assert "<|box_start|>" not in text.inner_text()
    page.get_by_label("show tokens").check()
    assert "<|box_start|>(250,500),(750,720)<|box_end|>" in text.inner_text()

    def colours(selector, what):
        return page.evaluate(
            "([s, w]) => [...document.querySelectorAll(s)].map(e => getComputedStyle(e)[w])",
            [selector, what],
        )

    own = "[data-object='1']"
    (stroke,) = set(colours(f"dialog rect{own}", "stroke"))
    shadows = set(colours(f"article.current {own}", "boxShadow"))
    assert len(shadows) == 1 and shadows.pop().startswith(stroke)
    assert colours("dialog rect[data-object='0']", "stroke") != [stroke]

    lit = page.locator("dialog .lit")
    page.locator(f"article.current {own}").first.hover()
    assert lit.count() == 1 + 2 * 3  # the box; id, name and box in thoughts and answer
    page.locator("dialog .question [data-object]").hover()
    assert lit.evaluate_all("all => all.map(each => each.dataset.object)") == ["q0"] * 2
    page.locator("dialog rect[data-object='0']").focus()
    assert lit.evaluate_all("all => all.map(each => each.dataset.object)") == ["0"] * 4


def test_by_keyboard_alone(visit, folder):
    page = visit(folder / "report.html")
    focused = "document.activeElement.querySelector('.where')?.textContent ?? ''"

    def close():
        page.keyboard.press("Escape")
        page.locator(".row:focus").wait_for()

    for key, expected in [("j", "Row 0"), ("j", "Row 1"), ("ArrowDown", "Row 2"), ("k", "Row 1")]:
        page.keyboard.press(key)
        assert page.evaluate(focused).startswith(expected)
    outline = "getComputedStyle(document.activeElement).outlineWidth"
    assert page.evaluate(outline) == "3px"
    dialog = page.locator("dialog")
    page.keyboard.press("Enter")
    assert dialog.is_visible() and dialog.locator("h2").inner_text() == "Row 1, Region"
    for key in ("ArrowRight", "j", "ArrowLeft"):
        page.keyboard.press(key)
    assert dialog.locator("h2").inner_text() == "Row 2, GG"
    close()
    assert not dialog.is_visible() and page.evaluate(focused).startswith("Row 2")
    page.keyboard.press("o")
    assert dialog.is_visible()
    for _ in range(99):  # over the end of the list's page
        page.keyboard.press("j")
    close()
    assert page.evaluate(focused).startswith("Row 101")

    page.keyboard.press("/")
    page.keyboard.type("question 23")
    assert len(titles(page)) == 11
    page.keyboard.press("Enter")
    assert page.evaluate(focused).startswith("Row 23")


def test_groups_of_grpo(visit, folder):
    page = visit(folder / "report.html")
    page.get_by_role("button", name="GRPO groups").click()
    assert titles(page) == ["Step 21, Static, q1"]
    assert page.locator("#list .mark").all_inner_texts()[-3:] == ["3.00", "2.55", "2.00"]
    page.locator("#list button").click()
    heads = page.locator("dialog .said").all_inner_texts()
    assert heads[0] == "#1 reward 3.00, advantage +0.50, object 1.00"
    assert drawn(page, "answer") == near([2, *TRUTH])
    assert drawn(page, "other") == near([2, 0.25, 0.5, 0.75, 0.72], [2, 0, 0, 0.2, 0.2])
    assert page.locator(".charts polyline").count() == 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(visit, folder, scheme):
    page = visit(folder / "report.html", 380, 760, color_scheme=scheme, has_touch=True)
    fits = "document.documentElement.scrollWidth <= innerWidth"
    assert page.evaluate(fits)
    strip = [page.locator(".tile").nth(i).bounding_box() for i in range(12)]
    assert len({(box["y"], box["height"]) for box in strip}) == 1  # to be pushed to the left
    page.locator(".tile").nth(10).tap()
    assert page.evaluate(fits)
    assert drawn(page, "answer") == near([1, 0.25, 0.5, 0.75, 0.8])
    page.get_by_label("Close (Escape)").tap()
    page.locator("#list button").nth(7).tap()
    assert page.evaluate(fits)
    assert page.evaluate("(d => d.scrollWidth <= d.clientWidth)(document.querySelector('dialog'))")
    assert drawn(page, "truth") == near([2, *TRUTH])
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (light == "rgb(255, 255, 255)") == (scheme == "light")


def test_what_models_and_files_say_stays_text(visit, tmp_path):
    rows = [
        {
            "task": ATTACK,
            "images": [ATTACK, ATTACK[:50]],
            "question": ATTACK,
            "answer": TRUTH,
        }
    ] * 2
    rows = rows_of(rows)
    named = GroundedObject((1, 1, 9, 9), 1, 1, ATTACK.replace("<", "").replace("|", ""))
    response = ATTACK + grammar.format_object(named) + "<bbox_id>" + ATTACK
    given = [response, trajectory((1, 1, 9, 9), thought=ATTACK)]
    runs = {ATTACK: report.Responses(given, scoring.score(rows, given))}
    path = tmp_path / "report.html"
    report.write_report(path, ATTACK, rows, runs, tmp_path)
    page = visit(path)
    assert page.locator(".tile .subject").first.inner_text() == ATTACK
    assert "<script>window.bad" in page.locator(".tile .question").first.inner_text()
    page.locator("#list button").first.click()
    page.keyboard.press("j")
    assert ATTACK in page.locator("dialog").inner_text()
    assert page.evaluate("window.bad") is None
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 2


def whole_benchmark(shared):
    rows = load_benchmark(shared("mig_bench", "MIG_data.json"))
    assert len(rows) == 4295
    rng = np.random.default_rng(0)
    words = "the of a which image shows same object left right colour behind small two".split()
    thoughts = [" ".join(rng.choice(words, 150)) for _ in rows]  # as long as the paper's
    boxes = np.sort(rng.integers(0, 500, (len(rows), 2, 2)), axis=1) + [[0], [300]]
    responses = [
        trajectory(box.reshape(4).tolist(), 1, thought)
        for box, thought in zip(boxes, thoughts, strict=True)
    ]
    return rows, {"mine": report.Responses(responses, scoring.score(rows, responses))}


def open_timed(visit, path, pictured):
    """Seconds until an example was open, the least of three visits, and the file's megabytes.

    Pictures, which are at the end of the file, may come later; in the end they are there.
    """
    seconds = []
    while len(seconds) < 3 and min(seconds, default=9) > 1:
        page = visit()
        start = time.perf_counter()
        page.goto(path.as_uri(), wait_until="commit")
        page.locator("#list button").first.click()
        assert page.locator("dialog article").count() == 1
        assert page.locator(".tile").count() == 12
        assert page.locator(".tile:has(image)").count() == (12 if pictured else 0)
        seconds.append(time.perf_counter() - start)
    page.wait_for_load_state("load")
    loaded = time.perf_counter() - start
    shown = page.locator("dialog figure image").count()
    assert shown == (page.locator("dialog figure").count() if pictured else 0)
    page.keyboard.press("Escape")
    for label, value in (("Task", "Reason"), ("Task", "all")):
        page.get_by_label(label).select_option(value)
    assert page.locator("#count").inner_text() == "1–100 of 4295, of 4295 in all"
    page.get_by_label("Search").fill("objects365")
    size = path.stat().st_size / 1e6
    print(f"{size:.1f} MB, an example open in {min(seconds):.2f} s, all loaded in {loaded:.2f} s")
    return min(seconds), size


def test_a_whole_benchmark_without_pictures(visit, shared, tmp_path):
    rows, runs = whole_benchmark(shared)
    path = tmp_path / "report.html"
    report.write_report(path, "MIG-Bench", rows, runs)
    _, size = open_timed(visit, path, pictured=False)  # its time is asserted with pictures
    assert size < 10


@pytest.mark.slow
def test_a_whole_benchmark_with_pictures(visit, shared, tmp_path):
    rows, runs = whole_benchmark(shared)
    rng = np.random.default_rng(0)
    sources = []
    for n in range(20):  # hard to compress: smooth shapes under noise
        low = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
        smooth = np.asarray(low.resize((480, 360), Image.Resampling.BICUBIC), np.float32)
        noisy = np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
        sources.append(tmp_path / f"source_{n}.jpg")
        Image.fromarray(noisy).save(sources[-1], quality=90)
    paths = dict.fromkeys(path for row in rows for path in row["images"])
    for number, name in enumerate(paths):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(sources[number % len(sources)], path)
    path = tmp_path / "report.html"
    report.write_report(path, "MIG-Bench", rows, runs, tmp_path)
    seconds, size = open_timed(visit, path, pictured=True)
    assert seconds < 3 and 40 < size < 100
