"""Slices and nodes that a step can be compiled for on a machine that has none of them.

The compilers come with the extra `plan`: libtpu for TPUs, XLA's CUDA plugin for GPUs. They need a description of the
devices, no device and no network.
"""

import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from typing import Literal

import jax
from jax.experimental import topologies as descriptions

from uner_jax.records import InputError

# GiB of a device that a program may fill. TPUs: what libtpu 0.0.42 enforces when it compiles; H100: what the driver
# leaves of 80 GB. A v4 chip is two devices to this compiler.
MEMORY_GIB = {"v4": 15.25, "v5e": 15.75, "v5p": 95.74, "v6e": 31.25, "h100": 79.0}

# Slices as they are sold, by the number in their name: chips for v5e and v6e, cores (two a chip) for v4 and v5p.
FLAT_SLICES = {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
CUBIC_SLICES = {8: "2x2x1", 16: "2x2x2", 32: "2x2x4", 64: "2x4x4", 128: "4x4x4", 256: "4x4x8", 512: "4x8x8"}
SLICES = {"v4": CUBIC_SLICES, "v5e": FLAT_SLICES, "v5p": CUBIC_SLICES, "v6e": FLAT_SLICES}
GPUS_A_NODE = 8

# What `--topology all` tries, from small to large.
ALL = ("v5e:2x4", "v5e:4x4", "v5e:8x8", "v6e:2x4", "v5p:2x2x1", "v5p:2x2x2", "h100x1", "h100x8", "h100x16")

EXTRA = (
    "compiling for {platform} needs the extra plan: pip install 'uner-jax[plan]', in an environment of its own "
    "(it brings libtpu and XLA's CUDA plugin, which a run on a CPU does not want)"
)
# Said before the compilers are loaded: ask no metadata server, share the machine with others that compile, and
# write warnings, of which one is looked for (`hlo.REMATERIALISED`), to standard error and to no file.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_MIN_LOG_LEVEL": "1",
    "TPU_STDERR_LOG_LEVEL": "1",
    "TPU_LOG_DIR": "disabled",
}
# As in targets/h100.txtpb.
TARGET_CUDNN = 91000
TARGET_CAPABILITY = 9.0


@dataclasses.dataclass(frozen=True)
class Topology:
    """A kind of device and how many: `shape` is the slice's, or the number of GPUs."""

    kind: str
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """As `parse_topology` reads it: v5e:4x4, h100x8."""
        sizes = "x".join(map(str, self.shape))
        return f"{self.kind}x{sizes}" if self.platform == "cuda" else f"{self.kind}:{sizes}"

    @property
    def platform(self) -> Literal["tpu", "cuda"]:
        """The compiler's platform."""
        return "cuda" if self.kind == "h100" else "tpu"

    @property
    def limit_gib(self) -> float:
        """What a program may fill of a device, in GiB."""
        return MEMORY_GIB[self.kind]

    @property
    def count(self) -> int:
        """How many devices it has."""
        return len(self.devices())

    def devices(self) -> Sequence[jax.Device]:
        """Its devices, for a mesh; they compile and do not compute.

        Raises InputError if the extra `plan` is not installed, or the compiler knows no such slice.
        """
        _prepare()
        try:
            return _describe(self).devices
        except NotImplementedError as error:
            raise InputError(EXTRA.format(platform=self.name)) from error
        except RuntimeError as error:
            if "not installed" in str(error):
                raise InputError(EXTRA.format(platform=self.name)) from error
            raise InputError(f"{self.name}: the compiler knows no such topology: {error}") from error


def parse_topology(text: str) -> Topology:
    """A topology by its shape (v5e:4x4, v5p:2x2x1), by its name (v5e-16, v5litepod-16, v5p-8) or as GPUs (h100x8).

    Raises InputError that says what is known.
    """
    name = text.strip().lower().replace("v5litepod", "v5e")
    if found := re.fullmatch(r"h100x([1-9]\d*)", name):
        return _gpus(int(found[1]), text)
    if found := re.fullmatch(r"(v\d\w?):(\d+(?:x\d+){1,2})", name):
        return _slice(found[1], found[2], text)
    if found := re.fullmatch(r"(v\d\w?)-(\d+)", name):
        known = SLICES.get(found[1], {})
        if int(found[2]) in known:
            return _slice(found[1], known[int(found[2])], text)
        if known:
            listed = ", ".join(f"{found[1]}-{count}" for count in known)
            raise InputError(f"topology {text!r}: there is {listed}; or give the shape, such as {found[1]}:{known[16]}")
    raise _unknown(text)


def parse_topologies(text: str) -> list[Topology]:
    """The topologies of a list with commas; "all" stands for those of `ALL`."""
    names = ALL if text.strip() == "all" else [name for name in text.split(",") if name.strip()]
    if not names:
        raise _unknown(text)
    return list(dict.fromkeys(map(parse_topology, names)))


def _gpus(count: int, text: str) -> Topology:
    if count > GPUS_A_NODE and count % GPUS_A_NODE:
        raise InputError(f"topology {text!r}: more than {GPUS_A_NODE} GPUs come in whole nodes of {GPUS_A_NODE}")
    return Topology("h100", (count,))


def _slice(kind: str, shape: str, text: str) -> Topology:
    if kind not in SLICES:
        raise _unknown(text)
    sizes = tuple(map(int, shape.split("x")))
    wanted = 2 if SLICES[kind] is FLAT_SLICES else 3
    if len(sizes) != wanted or min(sizes) < 1:
        raise InputError(f"topology {text!r}: a slice of {kind} has {wanted} sides, such as {kind}:{SLICES[kind][16]}")
    return Topology(kind, sizes)


def _unknown(text: str) -> InputError:
    return InputError(
        f"topology {text!r} is not known; expected a slice by shape (v5e:4x4, v6e:2x4, v5p:2x2x1, v4:2x2x1) or by name "
        "(v5e-16), GPUs (h100x8), or all"
    )


def _prepare() -> None:
    """Keep this process on the CPU, where the accelerators' plug-ins would look for devices and fail."""
    jax.config.update("jax_platforms", "cpu")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def _describe(topology: Topology) -> descriptions.TopologyDescription:
    if topology.platform == "tpu":
        return descriptions.get_topology_desc(platform="tpu", topology_name=topology.name)
    (count,) = topology.shape
    nodes, gpus = max(1, count // GPUS_A_NODE), min(count, GPUS_A_NODE)
    target = files("uner_jax.training").joinpath("targets", "h100.txtpb").read_text(encoding="utf-8")
    # partitions (joined by NVLink), hosts of a partition, GPUs of a host.
    return descriptions.get_topology_desc(platform="cuda", topology=f"1x{nodes}x{gpus}", target_config=target)


@contextmanager
def target_libraries() -> Iterator[None]:
    """Within: jax, which asks this machine for its cuDNN and its GPU, hears of those of an H100 node instead."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    answers = {
        "check_cudnn_version": lambda: TARGET_CUDNN,
        "check_compute_capability": lambda capability: float(capability) <= TARGET_CAPABILITY,
    }
    before = {name: getattr(cudnn, name) for name in answers}
    try:
        for name, answer in answers.items():
            setattr(cudnn, name, answer)
        yield
    finally:
        for name, answer in before.items():
            setattr(cudnn, name, answer)
