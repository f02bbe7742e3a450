"""Answers to turned images are not answers to images as stored."""

import pytest

from mirg_jax.errors import ConfigError
from mirg_jax.evaluation.predictions import Predictions


@pytest.mark.parametrize("recorded", [False, True])
def test_a_folder_is_of_one_way_of_reading_images(recorded, tmp_path):
    with Predictions(tmp_path, {"apply_exif": False}, 2) as kept:
        kept.add(0, "yes")
    if not recorded:  # by an earlier version, which turned none
        (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match="apply_exif was false, is true"):
        Predictions(tmp_path, {"apply_exif": True}, 2)
    with Predictions(tmp_path, {"apply_exif": False}, 2) as kept:
        assert kept.responses == ["yes", None] and not kept.unrecorded
