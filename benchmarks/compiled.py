"""The training step of whole LLaMAs, compiled for slices and nodes that are not here: writes docs/compiled.md.

python benchmarks/compiled.py

Hardware: two CPU cores, 4 GB of memory and the extra `plan`; no accelerator, no network. One to three CPU minutes
a TPU step, ten seconds a GPU step. Reaches: see docs/compiled.md.

What was compiled is kept in runs/compiled.jsonl; run the command again and it goes on with what is missing there.
"""

import dataclasses
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tyro

from uner_jax.command import run_command
from uner_jax.model.adapters import AdapterConfig
from uner_jax.model.config import LlamaConfig
from uner_jax.model.llamas import LLAMA2_7B, LLAMA2_70B, LLAMA_7B, LLAMA_13B
from uner_jax.records import atomic_path
from uner_jax.training.compiled import Compiled, compile_step
from uner_jax.training.config import DataConfig, MeshConfig, ModelConfig, TrainConfig
from uner_jax.training.hlo import GIB
from uner_jax.training.plan import Rows, counted, gib, peak_of
from uner_jax.training.topologies import parse_topology

ROW_LENGTH = 2048
# A quarter of a row is answers, and no row has more conversations than this.
ROWS = Rows(segments_per_row=32, answers_per_row=512)

MODELS = {"LLaMA-7B": LLAMA_7B, "LLaMA-13B": LLAMA_13B, "LLaMA-2-7B": LLAMA2_7B, "LLaMA-2-70B": LLAMA2_70B}
# As in configs/llama2_7b_qlora_single_gpu.py.
ADAPTER = AdapterConfig(rank=16, alpha=32.0, dropout=0.05, base="nf4")


QLORA = " QLoRA"


@dataclasses.dataclass(frozen=True)
class Case:
    """A step to compile: `rows` a device, at most `target` GiB a device (by default what the device has).

    Of a model whose name ends in QLORA only adapters are trained.
    """

    model: str
    topology: str
    rows: int = 1
    tensor: int = 1
    target: float | None = None

    @property
    def name(self) -> str:
        """What tells it from the others."""
        return f"{self.model} {self.topology} tensor {self.tensor}, {self.rows} row(s)"

    @property
    def architecture(self) -> LlamaConfig:
        """Of the model, or of the adapters' base."""
        return MODELS[self.model.removesuffix(QLORA)]

    @property
    def adapter(self) -> AdapterConfig:
        """The adapters, or none."""
        return ADAPTER if self.model.endswith(QLORA) else AdapterConfig()


CASES = (
    Case("LLaMA-7B", "v5e:2x4"),
    Case("LLaMA-7B", "v5e:4x4", target=8.2),
    Case("LLaMA-7B", "v5e:8x8", tensor=4, target=4.6),
    Case("LLaMA-7B", "v6e:2x4", rows=2, target=16.0),
    Case("LLaMA-7B", "v5p:2x2x1", rows=2),
    Case("LLaMA-7B", "h100x8"),
    Case("LLaMA-7B", "h100x8", rows=4),
    Case("LLaMA-13B", "v5e:8x8"),
    Case("LLaMA-13B", "v5e:8x8", tensor=4),
    Case("LLaMA-13B", "h100x8"),
    Case("LLaMA-2-70B", "v5p:4x4x4"),
    Case("LLaMA-2-70B", "h100x64"),
    Case("LLaMA-2-7B QLoRA", "v5e:2x2"),
)


def compiled(output: Path = Path("docs/compiled.md"), results: Path = Path("runs/compiled.jsonl")) -> None:
    """Compile all cases that `results` does not have, and write the table.

    Args:
        output: The page to write.
        results: What each case gave, a line each.
    """
    results.parent.mkdir(parents=True, exist_ok=True)
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    done = {row["case"]: row for row in map(json.loads, lines)}
    _write(output, done)
    for case in CASES:
        if case.name not in done:
            print(f"compiling {case.name} ...", file=sys.stderr, flush=True)
            done[case.name] = _row(case, _compile(case))
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(done[case.name]) + "\n")
            _write(output, done)
    print(f"{output}: {len(CASES)} steps", file=sys.stderr)


def _write(output: Path, done: dict[str, dict[str, Any]]) -> None:
    """The page with what is done; it says what is not yet."""
    with atomic_path(output) as path:
        path.write_text(_page([done[case.name] for case in CASES if case.name in done]), encoding="utf-8")


def _compile(case: Case) -> Compiled:
    topology = parse_topology(case.topology)
    devices = len(topology.devices())
    config = TrainConfig(
        dtype="bfloat16",
        model=ModelConfig(architecture=case.architecture, remat="full", strict_kernels=True),
        adapter=case.adapter,
        data=DataConfig(batch_size=case.rows * devices // case.tensor, row_length=ROW_LENGTH),
        mesh=MeshConfig(tensor=case.tensor),
    )
    return compile_step(config, case.architecture, ROWS, topology)


def _row(case: Case, step: Compiled) -> dict[str, Any]:
    target = case.target or step.topology.limit_gib
    met = step.fits and step.peak is not None and step.peak <= target * GIB
    return {
        "case": case.name,
        "model": case.model,
        "topology": case.topology,
        "mesh": " x ".join(map(str, step.mesh.values())),
        "rows": case.rows,
        "parameters": gib(step.parameters),
        "optimizer": gib(step.optimizer),
        "peak": peak_of(step),
        "target": f"{target:g}" + ("" if case.target else " (all)"),
        "met": "yes" if met else "no",
        "kernel": (counted(step.calls) or "-") if step.fused or step.error else f"no {step.kernel}",
        "donated": "-" if step.error else "all" if step.donated else "no",
        "rematerialised": "yes" if step.rematerialised else "none",
        "collectives": counted(step.collectives),
        "seconds": f"{step.seconds:.0f}",
        "error": step.error,
    }


COLUMNS = {
    "model": "model",
    "topology": "topology",
    "mesh": "mesh",
    "rows": "rows",
    "parameters": "parameters",
    "optimizer": "optimizer",
    "peak": "peak",
    "target": "at most",
    "met": "met",
    "kernel": "fused attention",
    "donated": "donated",
    "rematerialised": "involuntary rematerialisation",
    "seconds": "compiled in, s",
}


def _page(rows: list[dict[str, Any]]) -> str:
    table = [list(COLUMNS.values()), ["---"] * len(COLUMNS), *([str(row[key]) for key in COLUMNS] for row in rows)]
    collectives = [f"- {row['case']}: {row['error'] or row['collectives']}" for row in rows]
    missing = [case.name for case in CASES if case.name not in {row["case"] for row in rows}]
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "libtpu", "jax-cuda13-plugin"))
    return PAGE.format(
        missing=f"\nNot compiled yet: {'; '.join(missing)}.\n" if missing else "",
        table="\n".join(f"| {' | '.join(line)} |" for line in table),
        collectives="\n".join(collectives),
        versions=versions,
        answers=ROWS.answers_per_row,
        length=f"{ROW_LENGTH:,}",
    )


PAGE = """\
# Compiled for real targets

`python benchmarks/compiled.py` wrote this page on a machine without an accelerator: the compilers of TPUs and GPUs
were given the whole training step and a description of the devices ({versions}).
That shows that the step is partitioned as it should be, fits as the compiler counts, and holds the kernels and
collectives named here. It shows neither that its numbers are right on the device nor how fast it is. `uner plan` does
the same for a recipe of yours.

The step: all weights; float32 parameters and AdamW moments, bfloat16 computation, blocks recomputed in the backward
pass (remat "full"), rows of {length} tokens with at most {answers} answer tokens. Sizes are GiB a device; mesh is data
x fsdp x tensor; rows are those of a device (with tensor > 1: of the devices that share a row). "At most" is the
target of this project, or "all" that a device has: 15.75 on v5e, 31.25 on v6e, 95.74 on v5p, 79 on an H100. QLoRA:
adapters of rank 16 on a frozen base of 4 bits (nf4), as in configs/llama2_7b_qlora_single_gpu.py.

{table}
{missing}
XLA's compiler for GPUs picks no kernels for matrix products without a device, so an H100's temporary memory is near
what it will be, not the same. Seconds are wall time, on two CPU cores that other work kept busy.

## Collectives

As they stand in the program; one within the loop over the layers counts once. The TPU compilers turn many a gather
that feeds a matrix product into a ring of collective-permutes, which run beside the product.

{collectives}
"""


if __name__ == "__main__":
    run_command(lambda arguments: tyro.cli(compiled, args=arguments))
