"""The folder in which compiled programs are kept, for binaries and for models loaded in Python."""

import contextlib
import os
import sys

from mirg_jax.files import places


def keep() -> None:
    """Gives XLA a folder for compiled programs, which other runs of the same programs then use.

    JAX_COMPILATION_CACHE_DIR names another; empty, it turns the cache off. What a program has set
    itself in `jax.config` stays. Where no folder can be made, programs are compiled anew.
    """
    jax = sys.modules.get("jax")
    if jax and jax.config.jax_compilation_cache_dir:
        return
    folder = ""
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: a user without a home
        path = places.cache_folder("compiled")
        path.mkdir(parents=True, exist_ok=True)
        folder = str(path) if os.access(path, os.W_OK) else ""
    wanted = {
        "compilation_cache_dir": folder,
        # Small programs too: a run has dozens, which a GPU's compiler takes seconds for.
        "persistent_cache_min_compile_time_secs": 0.0,
    }
    for name, value in wanted.items():
        if f"JAX_{name.upper()}" in os.environ:
            continue
        os.environ[f"JAX_{name.upper()}"] = str(value)
        if jax:  # imported already, with the environment as it was
            jax.config.update(f"jax_{name}", value)
