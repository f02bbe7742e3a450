"""What a report holds: every row once, its boxes, each picture once, nothing unescaped."""

import collections
import html.parser
import json
import re

import pytest
from bench_rows import rows_of
from conftest import page_data
from PIL import Image

from mirg_jax.errors import DataError
from mirg_jax.grounding import grammar
from mirg_jax.mig_bench import scoring
from mirg_jax.report import browser, report
from mirg_jax.report.cards import groups_view

ATTACK = (
    "<script>alert(1)</script><img src=x onerror='alert(2)'>\"' $title & \ud800 </svg></article>"
    "<!-- pictures --></script>"
)
TRUTH, PREDICTED = (0.1, 0.2, 0.5, 0.6), (200, 300, 1000, 900)
TRUE_SIDES, PREDICTED_SIDES = [0.1, 0.2, 0.4, 0.4], [0.2, 0.3, 0.8, 0.6]  # x, y, width, height


class Page(html.parser.HTMLParser):
    """Collects tags, and fails on one that closes what is not open."""

    VOID = {"meta", "rect", "path", "polyline", "input", "br"}

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


def write(tmp_path, rows, responses, image_root=None, title="A run", **options):
    rows = rows_of(rows)
    runs = {
        name: report.Responses(given, scoring.score(rows, given))
        for name, given in responses.items()
    }
    path = tmp_path / "out" / "report.html"
    report.write_report(path, title, rows, runs, image_root, **options)
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return path


def examples(path):
    (view,) = page_data(path)["views"]
    return view


@pytest.mark.parametrize(
    ("question", "predicted_image", "true_at", "predicted_at"),
    [
        ("Find it in the second image.", 2, 2, 2),
        ("Find it in the second image.", 1, 2, 1),
        ("Find it in the second image.", None, 2, 2),
        ("Find it in the second image.", 7, 2, 2),
        ("Find it.", 2, 1, 2),
        ("Find it.", None, 1, 1),
    ],
)
def test_boxes_lie_in_their_images(tmp_path, question, predicted_image, true_at, predicted_at):
    path = write(tmp_path, [row(question=question)], {"mine": [responded(predicted_image)]})
    (card,) = examples(path)["cards"]
    assert card["truth"] == [[true_at, *TRUE_SIDES]]
    (answer,) = card["answers"]
    assert answer["box"] == [predicted_at, *PREDICTED_SIDES]
    nowhere = predicted_image == 7  # the answer is scored all the same, an object has no place
    assert answer["places"] == ([] if nowhere else [[0, predicted_at, *PREDICTED_SIDES]])
    assert answer["names"] == ["dog"]


def test_rows_are_named_by_their_number_in_the_file(tmp_path):
    some = rows_of([row(question=f"Question {n}?") for n in range(40)])[17::10]
    given = [None, responded(2), None]
    path = tmp_path / "report.html"
    report.write_report(path, "", some, {"a": report.Responses(given, scoring.score(some, given))})
    cards = examples(path)["cards"]
    assert [card["title"] for card in cards] == [f"Row {n}, Static" for n in (17, 27, 37)]
    assert [card["question"] for card in cards] == [[f"Question {n}?"] for n in (17, 27, 37)]
    assert ["box" in card["answers"][0] for card in cards] == [False, True, False]


def test_boxes_of_the_question_are_given_too(tmp_path):
    asked = f"The object at {grammar.format_box(PREDICTED)} of the first image: find it in image 2."
    (card,) = examples(write(tmp_path, [row(question=asked)], {"mine": [responded(2)]}))["cards"]
    assert card["asked"] == [[0, 1, *PREDICTED_SIDES]]
    assert card["question"][1] == ["box", "(200,300),(1000,900)", 0]


def test_inverted_outside_and_absurd_boxes_are_drawn_within_the_image(tmp_path):
    rows = rows_of([row(answer=(0.5, 0.6, 0.1, 0.2)), row(answer=(0.5, 0.2, 1.048, 0.6)), row()])
    huge = f"({'9' * 200}.5, 0.2, 0.5, 0.7)"
    scores = scoring.score(rows, [None, None, huge], "authors")
    path = tmp_path / "report.html"
    report.write_report(path, "", rows, {"a": report.Responses([None, None, huge], scores)})
    first, second, third = examples(path)["cards"]
    assert first["truth"] == [[1, *TRUE_SIDES]]
    assert second["truth"] == [[1, 0.5, 0.2, 0.5, 0.4]]
    assert "pieces" not in first["answers"][0] and "no response" in first["answers"][0]["said"]
    assert third["answers"][0]["box"] == [1, 0.5, 0.2, 0.5, 0.5]


def test_each_picture_is_stored_once(tmp_path, image_root):
    rows = [row(), row(images=("b.png", "a.jpg")), row(images=("a.jpg", "gone.jpg"))]
    path = write(tmp_path, rows, {"mine": [None] * 3}, image_root)
    data = page_data(path)
    assert [picture["path"] for picture in data["pictures"]] == ["a.jpg", "b.png", "gone.jpg"]
    assert [card["images"] for card in data["views"][0]["cards"]] == [[0, 1], [1, 0], [0, 2]]
    held = re.findall(
        r'<script type="text/plain" id="picture-(\d+)">([\w+/=]+)</script>', path.read_text()
    )
    assert [number for number, _ in held] == ["0", "1"]
    assert "no such file" in data["pictures"][2]["problem"]
    sizes = [(picture["width"], picture["height"]) for picture in data["pictures"]]
    assert sizes == [(480, 240), (90, 120), (4, 3)]


def test_without_an_image_root_no_picture_is_read(tmp_path):
    path = write(tmp_path, [row()], {"mine": [responded(1)]})
    assert "picture-0" not in path.read_text()
    assert [picture["problem"] for picture in page_data(path)["pictures"]] == ["", ""]


def test_everything_is_escaped_and_nothing_is_loaded(tmp_path, image_root):
    rows = [
        row(task=ATTACK, question=ATTACK, images=("a.jpg", ATTACK.replace("\ud800", ""))),
        row(question="$sections ${data}"),
    ]
    runs = {ATTACK: [responded(1, thinking=ATTACK), ATTACK], "other": [ATTACK, None]}
    path = write(tmp_path, rows, runs, image_root, title=ATTACK)
    page = Page(path.read_text(encoding="utf-8"))

    kinds = [script.get("type") for script in page.all("script")]
    assert kinds == ["text/plain", "text/plain", "application/json", None]  # two in the gallery
    assert not page.all("img") and not page.all("link") and not page.all("article")
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
        assert "src" not in attributes and attributes.get("href", "#").startswith("#")
    shown = "".join(page.text)
    assert shown.count("<script>alert(1)</script>") >= 5  # as text, in title and tables
    safe = ATTACK.replace("\ud800", "?")
    cards = page_data(path)["views"][0]["cards"]
    assert cards[0]["question"] == [safe] and safe in cards[0]["title"]
    assert safe in cards[0]["answers"][0]["pieces"][0]
    assert cards[1]["question"] == ["$sections ${data}"]
    (policy,) = [
        meta["content"]
        for meta in page.all("meta")
        if "content" in meta and "src" in meta["content"]
    ]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy


def chosen(view, **wanted):
    """Numbers of the cards that have these values of facets."""
    facets = dict(view["facets"])
    places = {name: i for i, name in enumerate(facets)}
    return [
        int(card["numbers"][0])
        for card in view["cards"]
        if all(
            facets[name].index(value) in card["facets"][places[name]]
            for name, value in wanted.items()
        )
    ]


def test_what_rows_can_be_chosen_and_sorted_by(tmp_path):
    hit = grammar.format_response("", grammar.format_box((100, 200, 500, 600)))
    elsewhere = responded(1)
    rows = [row("region"), row(question="In the second image?"), row(), row("own")]
    runs = {"old": [None, hit, hit, "x"], "new": [hit, elsewhere, responded(), "x"]}
    view = examples(write(tmp_path, rows, runs))
    assert dict(view["facets"])["Task"] == ["Static", "Region", "own"]
    assert chosen(view, Task="Static") == [1, 2]
    old, new = "Result of old", "Result of new"
    assert chosen(view, **{old: "hit"}) == [1, 2]
    assert chosen(view, **{old: "miss", new: "hit"}) == [0]
    assert chosen(view, **{new: "wrong image"}) == [1]
    assert chosen(view, **{old: "wrong image"}) == [1]  # naming no image is wrong, as in the score
    assert chosen(view, **{old: "no response"}) == [0]
    assert chosen(view, **{old: "bad format"}) == [3]
    assert chosen(view, Hits="they differ") == [0, 1, 2]
    assert chosen(view, Hits="all miss") == [3]
    assert view["orders"] == ["row", "IoU of old", "IoU of new"]
    assert view["cards"][1]["numbers"] == pytest.approx([1, 1, 0.09 / 0.55], abs=1e-3)

    alone = examples(write(tmp_path, rows, {"old": runs["old"]}))
    assert [name for name, _ in alone["facets"]] == ["Task", "Result"]
    assert alone["orders"] == ["row", "IoU"]


def gallery_of(cards, most, subjects="abcdefghij", results=("hit", "miss")):
    """What is chosen of cards given as (subject, result), as such pairs with their numbers."""
    made = [
        browser.Card("", "", "", [], [], [], {"of": (subject,), "result": (result, "more")})
        for subject, result in cards
    ]
    facets = {"of": subjects, "result": (*results, "more")}
    view = browser.View("", made, facets, spread=("of", "result"))
    return [(*cards[number], number) for number in browser.gallery(view, most)]


def test_a_gallery_is_spread_over_subjects_and_results():
    cards = [(subject, result) for _ in range(9) for subject in "cab" for result in ("miss", "hit")]
    chosen = gallery_of(cards, most=8)
    assert [(subject, result) for subject, result, _ in chosen] == [
        ("a", "hit"), ("a", "hit"), ("a", "miss"),  # three turns of the first two, two of the third
        ("b", "hit"), ("b", "miss"), ("b", "miss"),
        ("c", "hit"), ("c", "miss"),
    ]  # fmt: skip
    assert [number for *_, number in chosen] == [3, 9, 2, 5, 4, 10, 1, 0]  # the first of each

    many = [(subject, result) for subject in "abcdefghij" for result in ("hit", "miss")]
    few = gallery_of(many, most=6)
    assert [subject for subject, *_ in few] == list("abcdef")
    assert [result for _, result, _ in few] == ["hit", "miss"] * 3


def test_a_gallery_takes_what_there_is():
    assert gallery_of([], most=3) == []
    uneven = [("a", "hit")] * 5 + [("b", "miss")]
    assert [number for *_, number in gallery_of(uneven, most=4)] == [0, 1, 2, 5]
    assert [number for *_, number in gallery_of(uneven, most=12)] == [0, 1, 2, 3, 4, 5]
    assert browser.gallery(browser.View("", [], {})) == []


def test_the_gallery_shows_the_last_run_and_brings_its_pictures_first(tmp_path, image_root):
    for n in range(30):
        Image.new("RGB", (20, 20), (8 * n, 0, 0)).save(image_root / f"{n}.png")
    rows = [row(images=[f"{n}.png"]) for n in range(30)]
    hit = grammar.format_response("", grammar.format_box((100, 200, 500, 600)))
    new = [None] * 20 + [hit] * 10
    path = write(tmp_path, rows, {"old": [hit] * 30, "new": new}, image_root)
    data = page_data(path)
    assert [tile["card"] for tile in data["gallery"]] == [20, 21, 22, 23, 24, 25, 0, 1, 2, 3, 4, 5]
    assert data["gallery"][0] == {
        "card": 20,
        "subject": "Static",
        "badge": "hit, IoU 1.00",
        "drawn": 1,
    }
    assert data["gallery"][-1]["badge"] == "miss, IoU 0.00, no response"
    early, late = path.read_text().split('<script type="application/json"')
    numbers = [list(map(int, re.findall(r'id="picture-(\d+)"', part))) for part in (early, late)]
    assert numbers[0] == [0, 1, 2, 3, 4, 5, 20, 21, 22, 23, 24, 25]
    assert sorted(numbers[0] + numbers[1]) == list(range(30))


def test_tables_come_from_the_scores(tmp_path):
    rows = [row("region"), row(), row()]
    hit = grammar.format_response("", grammar.format_box((100, 200, 500, 600)))
    path = write(tmp_path, rows, {"old": [None, hit, None], "new": [hit, hit, None]})
    text = " ".join(Page(path.read_text()).text)
    assert "Region" in text and "66.67" in text and "<training>" not in text
    about = {"old": "before <training>", "gone": "of no run"}
    path = write(tmp_path, rows, {"old": [None, hit, None], "new": [hit, hit, None]}, about=about)
    text = " ".join(Page(path.read_text()).text)
    assert "before <training>" in text and "of no run" not in text
    assert "new compared with old" in text and "+33.33" in text


@pytest.fixture
def training(tmp_path):
    """A GRPO run's folder with a group, and one of SFT."""
    for name, step in {"sft": {"loss": 1.0}, "grpo": {"loss": 0.1, "reward": 2.0}}.items():
        (tmp_path / name).mkdir()
        lines = [json.dumps({"step": n, **step, "seconds": {}}) for n in (1, 2)]
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    folder = tmp_path / "grpo"
    (folder / "config.json").write_text(
        json.dumps({"data": {"image_root": str(tmp_path / "images")}})
    )
    (folder / "groups").mkdir()
    group = {
        "id": "q7",
        "task": "diff",
        "images": ["a.jpg", "b.png"],
        "question": "Where?",
        "targets": [[2, 100, 200, 500, 600], [None, 0, 0, 1000, 1000]],
        "completions": [
            {"text": responded(1), "reward": 0.5, "format": 0.5, "advantage": -1.0},
            {"text": ATTACK, "reward": 2.0, "format": 1.0, "advantage": 1.0},
        ],
    }
    (folder / "groups/step_000021.jsonl").write_text(json.dumps(group) + "\n")
    return {name: tmp_path / name for name in ("sft", "grpo")}


def test_curves_and_groups_of_training_runs(tmp_path, image_root, training):
    path = write(tmp_path, [row()], {"mine": [None]}, image_root, training=training)
    page = Page(path.read_text(encoding="utf-8"))
    assert len(page.all("polyline")) == 3
    data = page_data(path)
    assert [picture["path"] for picture in data["pictures"]] == ["a.jpg", "b.png"]  # shared
    _, view = data["views"]
    (card,) = view["cards"]
    assert card["title"] == "Step 21, Static, q7"
    assert card["truth"] == [[2, *TRUE_SIDES], [1, 0, 0, 1, 1]]
    best, other = card["answers"]
    assert (best["mark"], other["mark"]) == ("2.00", "0.50") and (best["good"], other["good"]) == (
        True,
        False,
    )
    assert other["said"] == "reward 0.50, advantage -1.00, format 0.50"
    assert other["box"] == [1, *PREDICTED_SIDES] and "box" not in best
    assert dict(zip(view["orders"], card["numbers"], strict=True)) == {
        "step": 21,
        "mean reward": 1.25,
        "spread of rewards": 1.5,
    }


def test_of_many_groups_all_kinds_are_shown(tmp_path, training, monkeypatch):
    """Each step logged four groups, of four tasks in the same order."""
    folder = training["grpo"] / "groups"
    group = json.loads((folder / "step_000021.jsonl").read_text())
    tasks = ("diff", "region", "multi_view", "reasoning")
    text = "".join(json.dumps(group | {"task": task}) + "\n" for task in tasks)
    for step in range(1, 41):
        (folder / f"step_{step:06d}.jsonl").write_text(text)
    monkeypatch.setattr("mirg_jax.report.cards._MOST_GROUPS", 40)
    cards = groups_view({"grpo": training["grpo"]}).cards
    assert len(cards) == 40 and len({card.numbers["step"] for card in cards}) == 40
    shown = collections.Counter(title for card in cards for title in card.facets["Task"])
    assert len(shown) == 4 and min(shown.values()) >= 4


def test_groups_of_earlier_runs_have_no_advantages(tmp_path, image_root, training):
    file = training["grpo"] / "groups/step_000021.jsonl"
    file.write_text(re.sub(r', "advantage": [-\d.]+', "", file.read_text()))
    _, view = page_data(write(tmp_path, [row()], {"a": [None]}, image_root, training=training))[
        "views"
    ]
    assert [answer["good"] for answer in view["cards"][0]["answers"]] == [None, None]


@pytest.mark.parametrize("text", ["{\n", "[]", '{"completions": []}'])
def test_a_file_that_holds_no_groups_is_named(tmp_path, training, text):
    (training["grpo"] / "groups/step_000021.jsonl").write_text(text)
    with pytest.raises(DataError, match="step_000021"):
        report.write_report(tmp_path / "report.html", "", rows_of([row()]), {}, training=training)


ODD_GROUPS = {
    "task": ["diff"],
    "question": None,
    "id": {},
    "images": ["a.jpg", 2],
    "targets": [[3, 1, 2, 3, 4]],
    "completions": [{"text": "x", "reward": "high"}],
}


@pytest.mark.parametrize("field", ODD_GROUPS)
def test_groups_of_odd_types_are_named(tmp_path, training, field):
    path = training["grpo"] / "groups/step_000021.jsonl"
    group = json.loads(path.read_text())
    others = {
        "targets": [[True, 1, 2, 3, 4], [1, "a", 2, 3, 4], [1, 2, 3], 7],
        "completions": [[], [{"reward": 1.0}], [group["completions"][0] | {"format": None}]]
        + [[{"text": 5, "reward": 1.0}], [{"text": "x", "reward": 10**400}]],
        "images": ["ab", [], None],
    }
    for value in (ODD_GROUPS[field], *others.get(field, [])):
        path.write_text(json.dumps(group | {field: value}) + "\n")
        with pytest.raises(DataError, match="step_000021.jsonl: not a group of GRPO") as caught:
            groups_view(training)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 300 + len(str(path))


@pytest.mark.parametrize(
    "text", ["[]", '{"data": []}', '{"data": {"image_root": 5}}', '{"data": null}', "[" * 100_000]
)
def test_a_config_that_tells_no_image_root_is_named(training, text):
    (training["grpo"] / "config.json").write_text(text)
    with pytest.raises(DataError, match=r"config\.json: doesn't tell the image root"):
        groups_view(training)


def test_a_report_without_runs_shows_the_curves(tmp_path, training):
    path = tmp_path / "report.html"
    report.write_report(path, "", rows_of([row()]), {}, training={"sft": training["sft"]})
    assert len(Page(path.read_text()).all("polyline")) == 1
    assert page_data(path)["views"] == [] and page_data(path)["gallery"] == []


def test_without_predictions_the_gallery_is_of_groups(tmp_path, image_root, training):
    path = tmp_path / "report.html"
    report.write_report(path, "", rows_of([row()]), {}, image_root, training=training)
    data = page_data(path)
    assert [view["name"] for view in data["views"]] == ["GRPO groups"]
    (tile,) = data["gallery"]
    assert tile == {"card": 0, "subject": "Static", "badge": "rewards 0.50 to 2.00", "drawn": 0}
