"""What is left when a run is complete: a summary, a plot of its loss, and, if asked for, a Hugging Face directory."""

import json
import statistics
from pathlib import Path
from typing import Any

import jax

from uner_jax.records import InputError, write_json
from uner_jax.training.checkpoint import checkpoint_root
from uner_jax.training.config import TrainConfig
from uner_jax.training.console import say
from uner_jax.training.metrics import read_metrics, validation_losses
from uner_jax.weights.convert import convert_to_hf

# Steps at either end whose mean loss is told; a step's own is as much about its rows as about the model.
ENDS = 10


def complete(config: TrainConfig, steps: int) -> None:
    """Write and say what a run of `steps` steps has come to; what is written already stays. The first host does it."""
    if jax.process_index():
        return
    run_dir = Path(config.run_dir)
    rows = read_metrics(run_dir)
    summary = summary_of(rows) | {"checkpoint": str(checkpoint_root(run_dir) / str(steps))}
    if config.export:
        if not _is_exported(config, steps):
            say(f"exporting to {config.export} ...")
            convert_to_hf(run_dir, Path(config.export))
        summary |= {"exported": config.export}
    if summary != _summary_before(config):
        plot_loss(rows, run_dir / "loss.png")
        write_json(_summary_path(config), summary)
    say(_told(run_dir, summary))


def check_export(config: TrainConfig, steps: int) -> None:
    """InputError, before the work is done, if what is asked for at its end cannot be."""
    if config.export and jax.process_count() > 1:
        raise InputError(
            "export: not in a run of several processes; leave it out, then: uner convert to-hf RUN_DIR DST"
        )
    if config.export and Path(config.export).exists() and not _is_exported(config, steps):
        raise InputError(f"export: {config.export} exists; give another name, or remove it")


def _is_exported(config: TrainConfig, steps: int) -> bool:
    """Whether the run was complete before, after as many steps, and its model lies there."""
    before = _summary_before(config)
    return Path(config.export).exists() and (before.get("exported"), before.get("steps")) == (config.export, steps)


def _summary_before(config: TrainConfig) -> dict[str, Any]:
    path = _summary_path(config)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _summary_path(config: TrainConfig) -> Path:
    return Path(config.run_dir, "summary.json")


def summary_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the rows of `metrics.jsonl` come to; a loss that was not finite is in no mean."""
    losses = [row["loss"] for row in rows if row["loss"] is not None]
    seconds = sum(row["seconds"] for row in rows)
    tokens = sum(row["tokens"] for row in rows)
    summary: dict[str, Any] = {
        "steps": rows[-1]["step"] if rows else 0,
        "skipped": rows[-1]["skipped"] if rows else 0,
        "tokens": tokens,
        "answer_tokens": sum(row["answer_tokens"] for row in rows),
        "seconds": seconds,
        "tokens_per_second": tokens / seconds if seconds else None,
        "first_loss": statistics.fmean(losses[:ENDS]) if losses else None,
        "last_loss": statistics.fmean(losses[-ENDS:]) if losses else None,
    }
    validated = validation_losses(rows)
    if validated:
        best = min(validated, key=validated.__getitem__)
        summary |= {"best_validation_loss": validated[best], "best_step": best}
    scored = [row["f1"] for row in rows if "f1" in row]
    return summary | ({"f1": scored[-1]} if scored else {})


def plot_loss(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the loss of each step, their running mean, and the validation losses, as a PNG."""
    from matplotlib.figure import Figure  # a slow import

    known = [(row["step"], row["loss"]) for row in rows if row["loss"] is not None]
    validated = validation_losses(rows)
    window = max(1, len(known) // 20)
    losses = [loss for _, loss in known]
    means = [statistics.fmean(losses[max(0, end - window) : end]) for end in range(1, len(losses) + 1)]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss, nats an answer token", title=path.parent.name)
    steps = [step for step, _ in known]
    axes.plot(steps, losses, color="tab:blue", alpha=0.35, linewidth=1, label="each step")
    axes.plot(steps, means, color="tab:blue", linewidth=2, label=f"mean of {window} step(s)")
    if validated:
        axes.plot(list(validated), list(validated.values()), "o-", color="tab:orange", label="validation")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, dpi=120, format="png")
    partial.rename(path)


def _told(run_dir: Path, summary: dict[str, Any]) -> str:
    lines = [
        f"done       {summary['steps']:,} steps, {summary['tokens']:,} tokens in {summary['seconds']:,.0f} s, "
        f"{summary['skipped']} step(s) skipped"
    ]
    if summary["last_loss"] is not None:
        change = f"{summary['first_loss']:.4f} -> {summary['last_loss']:.4f}"
        lines.append(f"loss       {change} (means of {ENDS} steps); {run_dir / 'loss.png'}")
    if "best_step" in summary:
        best = f"{summary['best_validation_loss']:.4f} after step {summary['best_step']}"
        lines.append(f"best       validation loss {best}")
    if "f1" in summary:
        lines.append(f"F1         {summary['f1']:.1%} on the questions drawn")
    lines.append(f"checkpoint {summary['checkpoint']}")
    if "exported" in summary:
        lines.append(f"exported   {summary['exported']}")
    return "\n".join(lines)
