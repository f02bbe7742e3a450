"""A report of results as one HTML file: scores, training curves and all examples."""

import html
import itertools
import pathlib
from collections.abc import Mapping, Sequence

from mirg_jax.data.images import Root
from mirg_jax.mig_bench import compare, scoring, tables
from mirg_jax.mig_bench.benchmark import Row
from mirg_jax.report import browser, cards
from mirg_jax.report.cards import Responses
from mirg_jax.report.charts import chart, training_curves

_MEANING = """<p>Hit rates in per cent: the share of boxes with an IoU of 0.5 or more, in
whichever image they are, as the benchmark has it. AVE is the mean of the tasks' rates, "all" the
rate over all rows; mIoU: mean overlap of predicted and true boxes; image: the right image is named;
format: the answer has the required form.{runs}</p>
"""
_CHANGE = """<p>Gained, lost: rows that one of the two hits alone; p: exact McNemar test; 95 %: of
the difference.</p>
"""


def write_report(
    path: str | pathlib.Path,
    title: str,
    rows: Sequence[Row],
    runs: Mapping[str, Responses],
    image_root: Root | None = None,
    *,
    training: Mapping[str, str | pathlib.Path] | None = None,
    featured: str = "",
    about: Mapping[str, str] | None = None,
    benchmark: str = "",
) -> None:
    """Writes scores, curves, all rows and GRPO's groups as one self-contained HTML file.

    Args:
      path: the file to write; its folder is created.
      title: heading of the report.
      rows: the benchmark's rows.
      runs: the runs by name, all of the same rows; each is compared with the previous one.
      image_root: folder that the rows' image paths are relative to. An image that can't be read is
        replaced by the reason. None: no images are shown, and boxes are drawn on blank frames.
      training: folders of training runs by name, whose curves and sampled groups are shown.
      featured: name of the run that the gallery shows; by default the last.
      about: what runs are, in a sentence each, by name.
      benchmark: which benchmark it is, as of `mig_bench.versions`; "" says nothing.

    Raises:
      DataError: if a training run's files can't be read.
    """
    training, about = training or {}, about or {}
    sections = []
    if runs:
        scores = {name: run.scores for name, run in runs.items()}
        told = {html.escape(name): html.escape(about[name]) for name in runs if name in about}
        listed = "".join(f"<br><b>{name}</b>: {what}" for name, what in told.items())
        if benchmark:
            listed = f"<br>Benchmark: {html.escape(benchmark)}.{listed}"
        sections.append(("Scores", score_table(scores) + _MEANING.format(runs=listed)))
    for before, after in itertools.pairwise(runs):
        changes = compare.compare(*(runs[name].scores.to_json() for name in (before, after)))
        table = browser.table(compare.table_cells(changes))
        sections.append((f"{after} compared with {before}", table + _CHANGE))
    if charts := [chart(name, lines) for name, lines in training_curves(training).items()]:
        sections.append(("Curves", f'<div class="charts">{"".join(charts)}</div>\n'))
    views = [
        cards.benchmark_view(rows, runs, image_root or "", featured),
        cards.groups_view(training),
    ]
    browser.write(path, title, sections, views, pictures=image_root is not None)


def score_table(named_scores: Mapping[str, scoring.Scores]) -> str:
    """Returns `tables.table_cells` as an HTML table."""
    return browser.table(tables.table_cells(named_scores))
