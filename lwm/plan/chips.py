"""Slices of TPU that are described and not there: JAX compiles for them on any machine."""

import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import re

import jax

from lwm.errors import UserError

_GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """A kind of TPU; its chips are one device each."""

    kind: str
    """As JAX names it."""
    memory: int
    """Bytes of its memory that a program can have."""
    sides: int
    """Dimensions in which slices are laid out."""
    cores: str | None = None
    """How the two cores of a chip are made one device, as JAX names it."""


# What libtpu 0.0.42.1 calls "available HBM" when it refuses a program. The chips have 32, 16, 95
# and 32 GiB (Google Cloud's documentation of each).
CHIPS = {
    "v4": Chip(kind="TPU v4", memory=int(30.75 * _GIB), sides=3, cores="megacore"),
    "v5e": Chip(kind="TPU v5e", memory=int(15.75 * _GIB), sides=2),
    "v5p": Chip(kind="TPU v5p", memory=int(95.74 * _GIB), sides=3),
    "v6e": Chip(kind="TPU v6e", memory=int(31.25 * _GIB), sides=2),
}

_SETTINGS = {
    # No chip is used: other processes may load the library, and no machine is asked about itself.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v4-64",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
    """Chips in a grid."""

    name: str
    """Such as `v4:8x8x4`."""
    chip: Chip
    count: int

    def devices(self) -> list[jax.Device]:
        """Returns the chips as devices to compile for.

        The process itself computes on the CPU from then on, if it has used no device yet.

        Raises:
            UserError: libtpu is not installed, or another than this JAX needs; or there is no
                slice of these sides.
        """
        _require_libtpu()
        os.environ |= {name: os.environ.get(name, value) for name, value in _SETTINGS.items()}
        jax.config.update("jax_platforms", "cpu")
        from jax.experimental import topologies

        options = {} if self.chip.cores is None else {"chip_config_name": self.chip.cores}
        try:
            found = topologies.get_topology_desc(self.name, platform="tpu", **options)
        except (jax.errors.JaxRuntimeError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"topology {self.name} cannot be described: {reason}") from None
        return list(found.devices)


def read_slice(text: str) -> Slice:
    """Reads the name of a slice, such as `v4:8x8x4`; needs no libtpu.

    Raises:
        UserError: It is of another form, or of an unknown kind.
    """
    name, _, sides = text.partition(":")
    chip = CHIPS.get(name)
    if chip is None:
        raise UserError(f"topology {text!r} is of no known TPU; give {', '.join(CHIPS)}")
    example = "x".join(["8", "8", "4"][: chip.sides])
    if not re.fullmatch("x".join([r"[1-9]\d{0,3}"] * chip.sides), sides):
        raise UserError(
            f"topology {text!r} cannot be read; give the chips along {chip.sides} sides, such as "
            f"{name}:{example}"
        )
    return Slice(name=text, chip=chip, count=math.prod(map(int, sides.split("x"))))


def _require_libtpu() -> None:
    """Refuses a missing libtpu, and one of another version than JAX asks for."""
    install = "pip install 'lwm[tpu-plan]'"
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"TPU's compiler, libtpu, is not installed: {install}")
    asked = [each for each in importlib.metadata.requires("jax") or () if "libtpu" in each]
    wanted = re.search(r"libtpu==([\d.]+)", "".join(asked))
    found = importlib.metadata.version("libtpu")
    if wanted and not found.startswith(wanted[1]):
        raise UserError(
            f"libtpu {found} is installed, but JAX {jax.__version__} needs {wanted[1]}*: {install}"
        )
