"""What a compiled program says of itself: its kernels, its collectives, its largest buffers, its complaints."""

import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

GIB = 2**30

# All collectives of XLA; an asynchronous one is counted where it starts. TPU compilers fuse some of them into
# others: a reduce-scatter is a fusion that calls %all-reduce-scatter.
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
COLLECTIVE = re.compile(rf" ({'|'.join(COLLECTIVES)})(?:-start)?\(|calls=%(all-reduce-scatter)")
CUSTOM_CALL = re.compile(r'custom_call_target="([^"]+)"')
# The custom calls of the fused attentions; the TPU compiler's own calls have other names.
KERNELS = {"tpu_custom_call": "splash", "__cudnn$fmha": "cudnn"}

# What the partitioner prints where it can move an array only by gathering it whole on every device.
REMATERIALISED = "Involuntary full rematerialization"

WIDTHS = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2}
WIDTHS |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
RESULT = re.compile(r"^ +(?:ROOT )?%[\w.-]+ = (\w+)\[([\d,]*)\](\{[^}]*\})? ([\w-]+)\(.*?(?:op_name=\"([^\"]*)\"|$)")
# A memory space that is not the device's main memory: the core's own fast memory, or the host's.
ELSEWHERE = re.compile(r"S\([1-9]")
# Instructions that give an array another name, and no memory.
NO_BUFFER = {"parameter", "get-tuple-element", "bitcast", "constant", "optimization-barrier"}

# As libtpu writes it: "... HLO temporaries (29.07G) exceeds ...", or "Used 16.00G of 15.75G hbm." and a list.
NEEDED = re.compile(r"(?:temporaries \(|Used )([\d.]+)([KMG])")
ALLOCATION = re.compile(r"Size: ([\d.]+)([KMG])\s+(?:Operator: op_name=\"([^\"]*)\"\s+)?Shape: (\w+\[[\d,]*\])")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


class Buffer(NamedTuple):
    """An array of a step on one device: what makes it, its shape, its size."""

    name: str
    shape: str
    size: int


def collectives(text: str) -> dict[str, int]:
    """How often each kind of collective stands in the program; one within a loop counts once."""
    return dict(sorted(Counter(found[1] or "reduce-scatter" for found in COLLECTIVE.finditer(text)).items()))


def kernels(text: str) -> dict[str, int]:
    """How often each fused attention is called: forward, again where its block is recomputed, and backward."""
    calls = Counter(CUSTOM_CALL.findall(text))
    found: Counter[str] = Counter()
    for target, count in calls.items():
        for prefix, kernel in KERNELS.items():
            if target.startswith(prefix):
                found[kernel] += count
    return dict(found)


def values(text: str, most: int) -> list[Buffer]:
    """The largest arrays that the program computes in a device's memory, one of each shape, which may be several.

    Those within a fusion never reach memory and are left out; so are those that only rename another.
    """
    found: dict[str, Buffer] = {}
    fused = False
    for line in text.splitlines():
        if header := COMPUTATION.match(line):
            fused = "fused" in header[1]
        elif not fused and (result := RESULT.match(line)):
            dtype, sizes, layout, opcode, name = result.groups()
            if dtype in WIDTHS and opcode not in NO_BUFFER and not ELSEWHERE.search(layout or ""):
                size = int(WIDTHS[dtype] * math.prod(int(n) for n in sizes.split(",") if n))
                shape = f"{dtype}[{sizes}]"
                found.setdefault(shape, Buffer(short_name(name or "") or opcode, shape, size))
    return sorted(found.values(), key=lambda buffer: (-buffer.size, buffer.name))[:most]


# Parts of an operation's name that every operation has: the step itself, its loops, what is recomputed.
SAYS_NOTHING = {"", "step", "while", "body", "closed_call", "checkpoint", "rematted_computation"}


def short_name(op_name: str) -> str:
    """The part of an operation's name that says where it stands: without the transformations around it."""
    words = op_name.split("/")
    bare = [re.sub(r"^(?:\w+\()+|\)+$", "", word) for word in words]
    telling = list(dict.fromkeys(word for word in bare if word not in SAYS_NOTHING))
    backward = any(word.startswith("transpose(") for word in words)
    return "/".join(telling[-3:]) + (" (backward)" if telling and backward else "")


def memory_error(message: str) -> tuple[float | None, list[Buffer]]:
    """What a compiler that ran out of memory says: GiB that it needs at least, and its largest buffers."""
    needed = NEEDED.search(message)
    gib = float(needed[1]) * UNITS[needed[2]] / GIB if needed else None
    listed = [
        Buffer(
            short_name(found[3]) if found[3] else "of the compiler", found[4], int(float(found[1]) * UNITS[found[2]])
        )
        for found in ALLOCATION.finditer(message)
    ]
    return gib, listed


@contextmanager
def compiler_log() -> Iterator[list[str]]:
    """Within, what the compilers write to standard error is kept; the list has its lines afterwards.

    They write past Python, to the file descriptor.
    """
    lines: list[str] = []
    before = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(before, 2)
            os.close(before)
            kept.seek(0)
            lines += kept.read().decode("utf-8", "replace").splitlines()
