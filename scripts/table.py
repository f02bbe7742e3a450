"""Reproduces a table of the paper: trains and evaluates every row, and adds the paper's figures.

    python scripts/table.py --config=configs/table_3.py:tiny --workdir=runs/table_3 --seeds=1,2,3

Writes WORKDIR/table.json, table.md, and a folder for each seed and row. Run the same command again
to continue. To run only some of the rows: --config.order="('base', 'grounded', 'grounded_rl')".
"""

import json

from absl import flags
from ml_collections import config_flags

from mirg_jax import cli
from mirg_jax.experiments import figures, rows, tables
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
flags.mark_flag_as_required("config")


def main(_):
    seeds = cli.seeds(_SEEDS)
    table = rows.read(_CONFIG.value)
    workdir = cli.output_folder(_WORKDIR)
    workdir.mkdir(parents=True, exist_ok=True)
    results = tables.run(table, workdir, seeds)
    if processes.is_first():
        text = figures.to_markdown(figures.to_json(table.title, table.rows, results))
        (workdir / "table.md").write_text(text + "\n")
        print(f"\n{table.title}\n\n{text}\n\n{json.dumps({'table': str(workdir / 'table.json')})}")


if __name__ == "__main__":
    cli.run(main)
