"""Shared test set-up: CPU only, a persistent compilation cache, and the optional real data."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent / ".jax_cache")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared():
    """Path inside the `shared` folder beside the checkout; skips where there is none."""

    def find(*parts: str) -> pathlib.Path:
        path = REPOSITORY.parent.joinpath("shared", *parts)
        if not path.exists():
            pytest.skip(f"needs real data that is not committed: ../shared/{'/'.join(parts)}")
        return path

    return find
