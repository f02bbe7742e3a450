"""What has changed since a resumed run's last start: settings, training data, own rewards."""

import json
from collections.abc import Mapping
from typing import Any

from mirg_jax.errors import ConfigError
from mirg_jax.files import outputs, places
from mirg_jax.files.places import Place
from mirg_jax.rl import own_rewards
from mirg_jax.runs import facts
from mirg_jax.runs.settings import Settings


def facts_of_data(settings: Settings) -> dict[str, Any]:
    """Returns what identifies a run's training data, for WORKDIR/data.json: images don't count.

    The files of a user's own reward functions do.

    Args:
      settings: the run's settings.

    Raises:
      DataError: if the file can't be read.
    """
    data = settings.data
    found = {"train_json": str(data.train_json), "sha256": facts.hash_rows(data.train_json)}
    if data.ratings:
        found |= {"ratings": data.ratings, "ratings_sha256": facts.hash_file(data.ratings)}
    names = settings.grpo.rewards if settings.grpo else ()
    if files := {name: file for name in names if (file := own_rewards.file_of(name))}:
        found["rewards_sha256"] = {name: facts.hash_file(file) for name, file in files.items()}
    return found


def write_data(workdir: Place, data: Mapping[str, Any]) -> None:
    """Writes the record of the training data to a run's folder.

    Raises:
      OSError: if it can't be written.
    """
    outputs.replace_text(workdir / "data.json", json.dumps(data, indent=1) + "\n")


def check_updates(workdir: Place, settings: Settings) -> None:
    """Checks that a run goes on with as many updates a step as it began with.

    The schedule of its learning rate counts updates.

    Raises:
      ConfigError: if it has others.
    """
    before = (places.read_object(workdir / "config.json") or {}).get("grpo", {})
    now = json.loads(settings.text).get("grpo", {})
    for name in ("updates", "mini_batches"):
        was = before.get(name, 1)  # mini_batches: runs of earlier versions had one
        if before and was != now.get(name, 1):
            raise ConfigError(
                f"grpo.{name} was {was} and can't be {now[name]} in the same run, whose learning "
                f"rate counts updates; leave it, or give another --workdir than {workdir}"
            )


def changes(workdir: Place, settings: Settings, data: Mapping[str, Any]) -> list[str]:
    """Returns lines that say what has changed since a run was last begun or resumed.

    Args:
      workdir: the run's folder.
      settings: the settings of now.
      data: the training data of now, as `facts_of_data`.
    """
    told = []
    # Runs of earlier versions have no data.json.
    before, recorded = (
        places.read_object(workdir / name) or {} for name in ("config.json", "data.json")
    )
    now = json.loads(settings.text)
    if others := facts.describe_settings(facts.flat(before), facts.flat(now)):
        told.append(f"settings changed since the last start: {'; '.join(others)}")
    for name, content in (("train_json", "sha256"), ("ratings", "ratings_sha256")):
        if content in data and recorded.get(content, data[content]) != data[content]:
            told.append(
                f"{data[name]}: its content has changed since the last start; the run goes on "
                "with the rows that are there now, from the same place in their order, so that "
                "some may be read twice in this epoch and others not at all"
            )
    known = recorded.get("rewards_sha256")
    for name, content in data.get("rewards_sha256", {}).items():
        if isinstance(known, dict) and known.get(name, content) != content:
            told.append(
                f"{name}: the file of this reward has changed since the last start; the run goes "
                "on with what it says now"
            )
    return told
