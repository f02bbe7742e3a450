"""Vendors' figures of GPUs and TPU chips."""

from typing import NamedTuple


class Chip(NamedTuple):
    """A kind of device, with the vendor's figures."""

    platform: str
    memory: float  # GiB available to programs
    flops: float  # bf16 operations per second


CHIPS = {
    "v5e": Chip("tpu", 15.75, 197e12),
    "v5p": Chip("tpu", 95.74, 459e12),
    "v6e": Chip("tpu", 31.25, 918e12),
    "tpu7x": Chip("tpu", 94.75, 1153.5e12),  # one of a chip's two cores, each a device of JAX's
    "a100": Chip("cuda", 79.1, 312e12),
    "h100": Chip("cuda", 79.1, 989e12),
    "h200": Chip("cuda", 139.8, 989e12),
}
# Parts of what JAX calls a device; the first that fits is meant.
_NAMES = {
    "A100": "a100",
    "H100": "h100",
    "H200": "h200",
    "TPU v5 lite": "v5e",
    "TPU v5": "v5p",
    "TPU v6 lite": "v6e",
    "TPU7x": "tpu7x",
}


def find(device_kind: str) -> Chip | None:
    """Returns the figures of a device by what JAX calls its kind; None if they are not known."""
    return next((CHIPS[ours] for name, ours in _NAMES.items() if name in device_kind), None)
