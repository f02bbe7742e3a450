"""The rows of a table of experiments: what each is trained on, and where it starts from."""

import dataclasses
from collections.abc import Mapping

from ml_collections import ConfigDict

from mirg_jax.errors import ConfigError
from mirg_jax.runs import setting_types, settings
from mirg_jax.scenes.scene_tasks import TASKS


@dataclasses.dataclass(frozen=True)
class TableRow:
    """A row of a table: a recipe, the data that it is trained on, and where it starts from.

    Attributes:
      paper: the paper's Spontaneous, Referential and AVE; empty where it has no such row.
      recipe: with the row's changes.
      data: a variant of the trajectories, "rl" for answers alone; "" trains nothing: the row is
        the recipe's own model.
      annotator: whose trajectories, where the table draws scenes.
      start: the row that it starts from; "" for the recipe's own model.
      against: the row that its gain is over; "" for the one that it starts from.
    """

    name: str
    title: str
    paper: tuple[float, ...]
    recipe: ConfigDict
    data: str
    annotator: str
    start: str
    against: str = ""

    def recipe_of(self, seed: int) -> ConfigDict:
        """A copy of the row's recipe, with this seed."""
        recipe = self.recipe.copy_and_resolve_references()
        recipe.seed = seed
        return recipe


@dataclasses.dataclass(frozen=True)
class TableData:
    """The files that rows are trained and evaluated on.

    Attributes:
      trajectories: folders of trajectories, by annotator.
      rl_json: questions with true boxes and no trajectories.
      errors: how far an annotator's boxes are too large on purpose, where the table draws scenes.
    """

    trajectories: Mapping[str, str]
    rl_json: str
    image_root: str
    benchmark: str
    benchmark_images: str
    errors: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of rows, on data that is there (`data`) or on scenes that it draws (`scenes`).

    Attributes:
      scenes: how many scenes to draw for SFT, RL and evaluation; None where `data` is given.
      tasks: of the scenes, a key of `scene_tasks.TASKS`.
      first_seed: of the scenes; a table's own seed is added.
      annotators: settings of the trajectories of scenes, by name.
    """

    title: str
    rows: tuple[TableRow, ...]
    data: TableData | None
    scenes: Mapping[str, int] | None
    tasks: str
    first_seed: int
    annotators: Mapping[str, ConfigDict]


def read(config: ConfigDict) -> Table:
    """Reads and checks a table of `configs/tables.py`, before any row is run.

    Raises:
      ConfigError: for rows that can't be run, or data that isn't named.
    """
    setting_types.check_none(config.to_dict())
    rows = read_rows(config)
    counts = config.scenes.to_dict()
    first_seed, tasks, data = counts.pop("first_seed"), counts.pop("tasks"), None
    if tasks not in TASKS:
        raise ConfigError(f"scenes.tasks={tasks!r} is none of {', '.join(TASKS)}")
    if not counts["evaluation"]:
        counts = None
        for field, value in config.data.items():
            if not value:
                raise ConfigError(f"config.data.{field} is not set")
        given = config.data.to_dict()
        folder = given.pop("trajectories")
        data = TableData(dict.fromkeys(config.annotators, folder), **given)
    annotators = dict(config.annotators.items())
    return Table(config.title, rows, data, counts, tasks, first_seed, annotators)


def read_rows(config: ConfigDict) -> tuple[TableRow, ...]:
    """Reads and checks the rows of a table, in their order.

    Raises:
      ConfigError: for rows that can't be run.
    """
    rows: list[TableRow] = []
    if not config.order or len(set(config.order)) < len(config.order):
        raise ConfigError(f"order={tuple(config.order)}: name at least one row, and none twice")
    for name in config.order:
        if name not in config.rows:
            raise ConfigError(f"order: there is no row {name!r}: {', '.join(config.rows)}")
        row = config.rows[name]
        if row.recipe not in config.recipes:
            raise ConfigError(f"rows.{name}.recipe={row.recipe!r} is none of config.recipes")
        if row.start and row.start not in {before.name for before in rows}:
            raise ConfigError(f"rows.{name}.start={row.start!r} is no row before it in order")
        if row.against and row.against not in config.rows:
            raise ConfigError(f"rows.{name}.against={row.against!r} is no row")
        if row.annotator not in config.annotators:
            raise ConfigError(f"rows.{name}.annotator={row.annotator!r} is none of annotators")
        recipe = _changed(config.recipes[row.recipe], row.changes, f"rows.{name}.changes")
        try:
            if grpo := settings.read(recipe).grpo:
                settings.check_rewards(grpo)
        except ConfigError as error:
            raise ConfigError(f"rows.{name}: {error}") from None
        paper = tuple(row.paper)
        how = row.data, row.annotator, row.start, row.against
        rows.append(TableRow(name, row.title, paper, recipe, *how))
    return tuple(rows)


def _changed(recipe: ConfigDict, changes: ConfigDict, field: str) -> ConfigDict:
    recipe = recipe.copy_and_resolve_references().lock()
    try:
        recipe.update(changes)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{field}: {error}") from None
    return recipe
