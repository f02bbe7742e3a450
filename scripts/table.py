"""Reproduces a table of the paper: trains and evaluates every row, and adds the paper's figures.

    python scripts/table.py --config=configs/table_3.py:tiny --workdir=runs/table_3 --seeds=1,2,3

Writes WORKDIR/table.json, table.md, and a folder for each seed and row. Run the same command again
to continue. To run only some of the rows: --config.order="('base', 'grounded', 'grounded_rl')".
"""

import json
import sys

from absl import flags
from ml_collections import config_flags

from mirg_jax import cli
from mirg_jax.experiments import figures, parallel, rows, tables
from mirg_jax.sharding import processes

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Description of the table, one of configs/table_*.py."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder where all results are written.", required=True
)
_SEEDS = flags.DEFINE_list(
    "seeds", ["0"], "Random seeds, separated by commas; all rows are run for each."
)
_JOBS = flags.DEFINE_integer(
    "jobs",
    1,
    "Rows that are run at once, each in a process: for small models on a GPU, which the processes "
    "share, or on many cores. What each says is in WORKDIR/seed_N/ROW.log.",
    lower_bound=1,
)
_ROW = flags.DEFINE_string(
    "row", "", "Runs this row alone, without a table; the row that it starts from must be there."
)
flags.mark_flag_as_required("config")


def main(_):
    seeds = cli.seeds(_SEEDS)
    table = rows.read(_CONFIG.value)
    workdir = cli.output_folder(_WORKDIR)
    workdir.mkdir(parents=True, exist_ok=True)
    if _ROW.value:
        tables.run_alone(table, workdir, seeds, _ROW.value)
        return
    if _JOBS.value > 1:
        parallel.run(table, workdir, seeds, [sys.executable, *sys.argv], _JOBS.value)
    results = tables.run(table, workdir, seeds)
    if processes.is_first():
        text = figures.to_markdown(figures.to_json(table.title, table.rows, results))
        (workdir / "table.md").write_text(text + "\n")
        print(f"\n{table.title}\n\n{text}\n\n{json.dumps({'table': str(workdir / 'table.json')})}")


if __name__ == "__main__":
    cli.run(main)
