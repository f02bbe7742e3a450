"""What helps at the small scale: studies over the benchmark's ten tasks, each a table of rows.

    python scripts/table.py --config=configs/studies.py:data --workdir=runs/data --seeds=1,2,3

The argument names one:

- data: SFT on 400 to 6400 trajectories of a good annotator, each with and without RL on answers.
- options: losses, advantages, rewards and the choice of groups, from an SFT on 200.
- image: the image reward, from an SFT on 100 that often names the wrong image.
- table_3: Table 3 of the paper.

Rows of a study sample as many completions as each other, or nearly where steps are filled up; but
for pool_steps, which takes as many steps. Each is compared with the row that it starts from, or
with another of RL.
"""

from ml_collections import ConfigDict

from configs import grpo_tiny, recipes, sft_tiny, table_3, tables, trajectories

SIZES = (400, 800, 1600, 3200, 6400)  # trajectories
PROMPTS = 1584  # sampled by a row of RL: 99 steps of 16, or 33 of 48
EVALUATION = 1000


def base_of(title: str, sizes: tuple[int, ...], rows: dict[str, ConfigDict]) -> ConfigDict:
    """A table over ten tasks, with an annotator for each number of trajectories."""
    recipe = {"sft": sft_tiny.get_config(), "grpo": grpo_tiny.get_config()}
    recipe["grpo"].num_steps = PROMPTS // recipe["grpo"].batch_size
    config = tables.table(title, rows, recipe)
    for size in sizes:
        # A good one, so that RL gains by the right object rather than by tighter boxes.
        annotator = config.annotators[f"first_{size}"] = trajectories.scenes()
        annotator.scenes.error = 0.1
        annotator.select.update(sft=size, rl=0)
    del config.annotators["annotated"]
    config.scenes.tasks = "all"
    return tables.scenes(config, sft=max(sizes), rl=PROMPTS, evaluation=EVALUATION)


def trained_on(size: int) -> ConfigDict:
    """SFT on so many trajectories, always as many steps."""
    title = f"SFT on {size}"
    return tables.row(title, None, "sft", "grounded", "", annotator=f"first_{size}")


def rewarded(
    title: str, start: str, annotator: str, changes: dict | None = None, against: str = ""
) -> ConfigDict:
    """RL on answers alone."""
    how = {"annotator": annotator, "against": against}
    return tables.row(title, None, "grpo", "rl", start, changes, **how)


def untrained(size: int) -> ConfigDict:
    return tables.row("base", None, "sft", "", "", annotator=f"first_{size}")


def data() -> ConfigDict:
    rows = {"base": untrained(SIZES[0])}
    for size in SIZES:
        rows[f"sft_{size}"] = trained_on(size)
        rows[f"rl_{size}"] = rewarded(f"SFT on {size} + RL", f"sft_{size}", f"first_{size}")
    return base_of("Data efficiency: trajectories and RL", SIZES, rows)


_ORDERED = {"gate": (0.05, 0.025, 0.0125, 0.00625), "order": "reward"}
_POOL = {
    "prompts_per_micro_batch": 8,
    "grpo": {"pool": 3, "mini_batches": 2, **_ORDERED},
}


def _three_updates(**grpo) -> dict:
    """Three times as many prompts a step, with three updates, so as many updates in all.

    The second and third learn from completions of an earlier policy. Losses differ only there.
    """
    changes = {"mini_batches": 3, **grpo}
    return {"batch_size": 48, "num_steps": PROMPTS // 48, "grpo": changes}


# Row: its title, what it changes, the row that its gain is over.
OPTIONS = {
    "int8": ("8-bit sampling", {"grpo": {"int8_sampling": True, "importance_cap": 2.0}}, "grpo"),
    "pool": ("pool, gate and order", _POOL | {"num_steps": PROMPTS // 48}, "grpo"),
    # As MG-Thinker compares: three times the completions for as many steps.
    "pool_steps": ("pool, gate and order, as many steps", _POOL, "grpo"),
    "large": ("three updates a rollout", _three_updates(), "grpo"),
    "ordered": ("three updates a rollout, gate and order", _three_updates(**_ORDERED), "grpo"),
    "gspo": (
        "three updates a rollout, GSPO",
        _three_updates(objective="gspo", clip_low=3e-4, clip_high=4e-4),
        "large",
    ),
    "cispo": (
        "three updates a rollout, CISPO",
        _three_updates(objective="cispo", clip_low=1.0, normalisation="token"),
        "large",
    ),
    "sapo": ("three updates a rollout, SAPO", _three_updates(objective="sapo"), "large"),
    # Steps that sample a second round are about a quarter: nearly as many completions.
    "dapo": (
        "DAPO",
        {
            "num_steps": 78,
            "grpo": {
                "gate": (0.0,), "max_rounds": 2, "clip_high": 0.28, "normalisation": "token",
            },
        },
        "grpo",
    ),
    "dr_grpo": (
        "Dr. GRPO", {"grpo": {"advantage_scale": "none", "normalisation": "constant"}}, "grpo",
    ),
    "gdpo": ("GDPO", {"grpo": {"advantage_scale": "gdpo"}}, "grpo"),
    "difficulty": ("difficulty weight", {"grpo": {"difficulty_weight": True}}, "grpo"),
    "thresholds": (
        "IoU with two thresholds",
        {"grpo": {"rewards": {"object": 0.0}, "more_rewards": ("object_bounded",)}},
        "grpo",
    ),
}  # fmt: skip


def options() -> ConfigDict:
    size = 200
    start, annotator = f"sft_{size}", f"first_{size}"
    rows = {"base": untrained(size), start: trained_on(size)}
    rows["grpo"] = rewarded("plain GRPO", start, annotator)
    for name, (title, changes, against) in OPTIONS.items():
        rows[name] = rewarded(title, start, annotator, changes, against)
    return base_of("Options of RL", (size,), rows)


def image() -> ConfigDict:
    size = 100
    start, annotator = f"sft_{size}", f"first_{size}"
    ungated = {"rewards": {"object": 1.0}}
    gated = {"rewards": {"object": 0.0}, "more_rewards": ("object_gated",)}
    rows = {"base": untrained(size), start: trained_on(size)}
    for name, title, rewards in (("", "", ungated), ("gated_", "gated box, ", gated)):
        for also, share in (("without", 0.0), ("with", 1.0)):
            rows[name + also] = rewarded(
                f"{title}{also} the image reward",
                start,
                annotator,
                {"grpo": rewards | {"rewards": rewards["rewards"] | {"image": share}}},
                against=f"{name}without" if share else "",
            )
    return base_of("The image reward", (size,), rows)


def paper() -> ConfigDict:
    config = table_3.get_config("tiny")
    config.scenes.update(tasks="all", evaluation=EVALUATION)
    return config


STUDIES = {
    "data": data,
    "options": options,
    "image": image,
    "table_3": paper,
}


def get_config(argument: str = "data"):
    return recipes.choose("configs/studies.py", "study", argument, STUDIES)()
