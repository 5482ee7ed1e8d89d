"""The `uner` command: convert, inspect, extract, evaluate, view, export, demo, ask, plan."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from uner_jax.command import keep_programs, run_command, use_huge_pages
from uner_jax.data.beam import pipeline_options
from uner_jax.data.storage import as_path, is_remote
from uner_jax.evaluation.settings import Answering, Asking, DataSet
from uner_jax.extraction.corpus.job import STDIN, Job, Settings
from uner_jax.records import InputError, find_files

Dtype = Literal["float32", "bfloat16"]
Source = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SRC")]
Destination = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DST")]


def from_hf(source: Source, destination: Destination, dtype: Dtype | None = None) -> None:
    """Convert a Hugging Face directory, a PEFT adapter or a GGUF file to a checkpoint of ours.

    Args:
        source: The directory (config.json, safetensors, tokenizer; or an adapter, which is merged) or the .gguf file.
        destination: Directory of the checkpoint; must not exist, or be empty.
        dtype: Dtype of the weights written; the default keeps the source's.
    """
    from uner_jax.weights.convert import convert_from_hf

    print(convert_from_hf(source, destination, dtype), file=sys.stderr)


def to_hf(
    source: Source,
    destination: Destination,
    dtype: Dtype | Literal["float16"] | None = None,
    adapter: Literal["merge", "keep"] = "merge",
    base_model: str = "",
    license: str = "",
    datasets: tuple[str, ...] = (),
    language: tuple[str, ...] = ("en",),
) -> None:
    """Convert a checkpoint, a training run or a GGUF file to a directory that transformers loads.

    It holds safetensors in shards, configs (greedy, 256 new tokens), the tokenizer with UniversalNER's prompt as its
    chat template, and a model card with what is recorded of data and recipe; the last four options say what is not.

    Args:
        source: A checkpoint directory, a run_dir of train.py (its newest checkpoint), or any model.
        destination: The Hugging Face directory; must not exist, or be empty.
        dtype: Dtype of the weights written; the default keeps the source's.
        adapter: Adapters of the source: merge them into their base, or keep them apart, as a directory for PEFT.
        base_model: For the card: the base's name on the Hugging Face Hub, such as meta-llama/Llama-2-7b-hf.
        license: For the card: the licence of the weights in the Hub's words, such as llama2 or cc-by-nc-4.0; by default
            the one that the base's own card states.
        datasets: For the card: the training data's names on the Hub, such as Universal-NER/Pile-NER-type.
        language: For the card: codes of the languages of the texts.
    """
    from uner_jax.weights.card import Card
    from uner_jax.weights.convert import convert_to_hf

    card = Card(base_model, license, datasets, language)
    print(convert_to_hf(source, destination, dtype, adapter, card), file=sys.stderr)


def to_gguf(
    source: Source, destination: Destination, dtype: Literal["float32", "float16", "bfloat16", "q8_0"] = "bfloat16"
) -> None:
    """Convert any model to a GGUF file for llama.cpp, with its tokenizer and the prompt as its chat template.

    Args:
        source: A checkpoint directory, a run_dir of train.py (its newest checkpoint), or any model.
        destination: The file; must not exist.
        dtype: Dtype of the matrices; q8_0 takes half of bfloat16. Norms and biases are float32.
    """
    from uner_jax.weights.convert import convert_to_gguf

    print(convert_to_gguf(source, destination, dtype), file=sys.stderr)


def inspect(path: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="PATH")], json: bool = False) -> None:
    """Say what a path is: a model in any form, an adapter, a training run, a data set, a file of records.

    Reads headers only. Leaves with 1 if what is there cannot be used, and says why.

    Args:
        path: A Hugging Face or PEFT directory, a checkpoint or run_dir, a GGUF file, TFRecords, a tokenizer, records.
        json: Print one JSON object, for programs.
    """
    from json import dumps

    from uner_jax.inspection.path import inspect, lines

    facts = inspect(path)
    print(dumps(facts, indent=2) if json else "\n".join(lines(facts)))
    if "problem" in facts:
        raise InputError(facts["problem"])


def extract(
    model: str,
    input: tuple[str, ...],
    output: str,
    labels: str = "",
    labels_file: Path | None = None,
    format: Literal["jsonl", "parquet"] = "jsonl",
    text_field: str = "text",
    id_field: str = "id",
    carry: str = "",
    text_lines: bool = False,
    max_characters: int = 2_000_000,
    part_documents: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    shard: Annotated[str | None, tyro.conf.arg(metavar="I/N")] = None,
    resume: bool = True,
    settings: Annotated[Settings, tyro.conf.OmitArgPrefixes] = Settings(),  # noqa: B008 (it is frozen)
    beam_runner: str | None = None,
    beam_options: tuple[str, ...] = (),
) -> None:
    """Extract entities from a corpus of documents; run the same command again and a stopped job goes on.

    `uner extract --merge DIR` makes one file of the parts of all shards. Leaves with 1 if a document could not be read.

    Args:
        model: A Hugging Face directory, a checkpoint or run_dir of ours, or a GGUF file.
        input: Files, or patterns of them: JSON lines or an array, Parquet, CSV or TSV, or else plain text, one document
            a file; each also .gz or .zst; - is JSON lines from standard input.
        output: Directory of the parts, their manifest and a summary.
        labels: Entity types, separated by commas; a record's own "labels" come first.
        labels_file: A file of entity types, one a line.
        format: Format of the parts.
        text_field: Field or column of the text.
        id_field: Field or column of the id; a document without one is named by its place.
        carry: Fields or columns of the input that stand in the output too, separated by commas.
        text_lines: A line of plain text is a document, not a file.
        max_characters: A longer text is not extracted from, but counted as an error: it has to be in memory at once.
        part_documents: Documents of a part, behind which a killed job goes on: fewer lose less work, in more files.
            256 without it, or as many as have a million characters.
        shard: Which part of the documents this process does: I of N, from 0. By default a process of several (SLURM, a
            TPU slice, JAX_PROCESS_ID) does its share, and a process alone does all.
        resume: Go on after the parts that stand in the output already; --no-resume does them anew.
        beam_runner: Extract with Apache Beam on this runner, such as FnApiRunner (this machine) or DataflowRunner: the
            same records, in parts that end where an input file ends. Model, input and output must mean the same on all
            workers; they may lie in an object store, each file by its own address: gs://bucket/rows.jsonl.
        beam_options: Options of Beam and of the runner, each as option=value without dashes in front.
    """
    index, shards = _shard(shard) if beam_runner is None or shard else (0, 1)
    inputs = tuple(_inputs(input, beam_runner is not None))
    wanted, carried = tuple(_labels(labels, labels_file)), tuple(_listed(carry))
    texts = text_field, id_field, carried, text_lines, max_characters, part_documents
    job = Job(model, inputs, wanted, format, index, shards, *texts, settings)
    if beam_runner is None:
        if beam_options:
            raise InputError("--beam-options are for a job on Beam: name its runner with --beam-runner")
        if is_remote(output) or is_remote(model):
            raise InputError("only a job with --beam-runner reads and writes an object store")
        counts = _extract_here(job, Path(output), resume)
    else:
        options = pipeline_options(beam_runner, beam_options)  # before the import, which needs Beam
        from uner_jax.extraction.corpus.beam import extract_on_beam

        counts = extract_on_beam(job, output, options, resume)
    _say_what_was_extracted(output, counts, settings.max_new_tokens)


def _extract_here(job: Job, output: Path, resume: bool) -> dict[str, int]:
    from uner_jax.extraction.corpus.run import extract_corpus
    from uner_jax.mesh import wait_for_others

    counts = extract_corpus(lambda: job.settings.extractor(job.model), job, output, resume)
    wait_for_others()
    return counts


def _inputs(patterns: Sequence[str], remote: bool) -> Iterator[Path]:
    """The files that the patterns match, and the addresses as they are."""
    if str(STDIN) in patterns:
        yield STDIN
    yield from find_files(pattern for pattern in patterns if not is_remote(pattern) and pattern != str(STDIN))
    for address in dict.fromkeys(filter(is_remote, patterns)):
        if not remote:
            raise InputError(f"--input {address}: only a job with --beam-runner reads an object store")
        yield as_path(address)


def _say_what_was_extracted(output: str, counts: dict[str, int], max_new_tokens: int) -> None:
    print(
        f"{output}: {counts['documents']:,} documents, {counts['windows']:,} windows, {counts['entities']:,} entities; "
        f"left out {counts['ungrounded']:,} answers that do not stand in the text; "
        f"{counts['cut']:,} answers cut at {max_new_tokens} tokens",
        file=sys.stderr,
    )
    if counts["errors"]:
        raise InputError(f'{output}: {counts["errors"]:,} document(s) could not be read; see "error" in their records')


def merge(merge: Path, output: Path | None = None) -> None:
    """Make one file of the parts of all shards, in the order of the input; or say what is missing.

    Args:
        merge: The output of an extraction, or of its shards together.
        output: The file: .jsonl (also .gz or .zst) or .parquet, as the parts are; by default merged.* in that DIR.
    """
    from uner_jax.extraction.corpus.merge import merge_parts

    path, count = merge_parts(merge, output)
    print(f"{path}: {count:,} records", file=sys.stderr)


def evaluate(
    model: str,
    data: tuple[str, ...],
    output: Path,
    calibrate: bool = False,
    resume: bool = True,
    asking: Annotated[Asking, tyro.conf.OmitArgPrefixes] = Asking(),  # noqa: B008 (it is frozen)
    answering: Annotated[Answering, tyro.conf.OmitArgPrefixes] = Answering(),  # noqa: B008 (it is frozen)
) -> None:
    """Answer the questions of benchmark files greedily, and score the answers as the paper does, and as spans.

    Run the same command again and a stopped run goes on. `uner evaluate --compare A B` sets two runs side by side.

    Args:
        model: A Hugging Face directory, a checkpoint or run_dir of ours, or a GGUF file.
        data: Data sets, each a PATH or NAME=PATH: conversations (JSON array, JSON lines, Parquet; the published files
            are such), or else a token and its tag in each line (BIO).
        output: Directory of predictions.jsonl, report.json and a page, index.html.
        calibrate: Find the temperature for the scores of `uner extract --temperature`; writes calibration.json and a
            reliability diagram.
        resume: Keep the answers that are in the output already; --no-resume answers anew.
    """
    from uner_jax.evaluation.run import evaluate as run_evaluation
    from uner_jax.evaluation.run import print_report

    report = run_evaluation(model, list(map(DataSet.parse, data)), output, asking, answering, calibrate, resume)
    print_report(report)
    if calibrate:
        print(f"scores are calibrated by --temperature {report['calibration']['temperature']}", file=sys.stderr)
    if report["too_long"]:
        print(f"{report['too_long']:,} questions left no room for an answer, and count as empty", file=sys.stderr)
    print(f"{output}: predictions.jsonl, report.json, index.html", file=sys.stderr)


def compare(compare: Annotated[tuple[Path, Path], tyro.conf.arg(metavar="A B")], output: Path) -> None:
    """Set two runs of uner evaluate over the same questions side by side, with a paired bootstrap.

    Args:
        compare: The outputs of the two runs.
        output: Directory of comparison.json and a page, index.html.
    """
    from uner_jax.evaluation.comparison import compare as run_comparison
    from uner_jax.evaluation.comparison import print_comparison

    print_comparison(run_comparison(*compare, output))
    print(f"{output}: comparison.json, index.html", file=sys.stderr)


def view(input: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="F")], output: Path) -> None:
    """Make one self-contained HTML page of extracted entities.

    Args:
        input: Extraction records (JSON lines or Parquet), or the directory of uner extract.
        output: The page.
    """
    from uner_jax.view.page import write_page

    print(f"{output}: {write_page(input, output):,} documents", file=sys.stderr)


def export(
    input: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="F")],
    to: Literal["spacy", "conll", "label-studio", "brat", "prodigy", "hf", "gliner"],
    output: Path,
    flat: bool = False,
    partial_words: Literal["split", "drop"] = "split",
    min_score: float = 0.0,
    language: str = "xx",
) -> None:
    """Write extracted entities in the form of another tool, and say what that form cannot hold.

    Args:
        input: Extraction records (JSON lines or Parquet), or the directory of uner extract.
        to: The form; docs/export.md has an example of each.
        output: A file (.spacy, .json, .jsonl; any for conll), or for brat and hf a directory that is not there yet.
        flat: Of entities that overlap keep the best by score, then by length; conll and hf are always flat.
        partial_words: A word in which an entity begins or ends is split there, or the entity is dropped.
        min_score: Leave out entities with a lower score (0 to 1).
        language: spaCy's code of the language, for its tokenizer (spacy only; xx is any).
    """
    from uner_jax.export.documents import Choices
    from uner_jax.export.formats import FORMATS
    from uner_jax.export.formats import export as run_export

    tally = run_export(input, to, output, Choices(flat, partial_words, min_score, language))
    print(f"{output}: {tally.written:,} documents, {tally.expressed:,} entities", file=sys.stderr)
    without = f"this form has no place for {FORMATS[to].without}"
    for line in [*tally.lines(), *([without] if FORMATS[to].without else [])]:
        print(f"  {line}", file=sys.stderr)


def demo(
    model: str,
    host: str = "127.0.0.1",
    port: int = 7860,
    max_characters: int = 5000,
    queue: int = 8,
    settings: Annotated[Settings, tyro.conf.OmitArgPrefixes] = Settings(),  # noqa: B008 (it is frozen)
) -> None:
    """Serve a web page that marks the entities of a pasted text; Ctrl-C ends it.

    Args:
        model: A Hugging Face directory, a checkpoint or run_dir of ours, or a GGUF file.
        host: Address to listen at; all that can reach another than 127.0.0.1 may use the model.
        port: Port to listen at; 0 takes any free one.
        max_characters: The most characters (code points) of a text.
        queue: How many texts may wait while one is read; more are turned away.
    """
    from uner_jax.view.demo.question import Limits
    from uner_jax.view.demo.server import serve_demo

    if max_characters < 1 or queue < 0:
        raise InputError("--max-characters must be 1 or more, and --queue 0 or more")
    serve_demo(model, host, port, Limits(max_characters, waiting=queue), lambda: settings.extractor(model))


def ask(
    text: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="TEXT")] = None,
    *,
    model: str,
    labels: str = "person,organization,location,date",
    json: bool = False,
    settings: Annotated[Settings, tyro.conf.OmitArgPrefixes] = Settings(),  # noqa: B008 (it is frozen)
) -> None:
    """Show the entities of one text in the terminal, or of one after another as you write them.

    Args:
        text: The text; without one, standard input is read, and on a terminal you are asked for texts.
        model: A Hugging Face directory, a checkpoint or run_dir of ours, or a GGUF file.
        labels: Entity types, separated by commas.
        json: Print a line of JSON for each text, an extraction record, instead of a marked text and a table.
    """
    from uner_jax.view.conversation import Conversation, piped_text, typed_line
    from uner_jax.view.terminal import shows_colours

    asked = text if text is not None or sys.stdin.isatty() else piped_text()
    coloured = shows_colours(sys.stdout, os.environ)
    conversation = Conversation(settings.extractor(model), _labels(labels, None), json, coloured)
    if asked is None:
        conversation.converse(typed_line)
    else:
        conversation.answer(asked)


def plan(
    recipe: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CONFIG.py")], topology: str
) -> Callable[[list[str]], None]:
    """Compile a recipe's training step for a TPU slice or GPUs that are not there: does it fit, and what would?

    Every field of the recipe can be given as for train.py, such as --data.batch-size 64. Needs the extra `plan`.

    Args:
        recipe: A recipe (see configs/), before all fields.
        topology: A slice by shape or name (v5e:4x4, v5e-16, v5p:2x2x1), GPUs (h100x8), several with commas, or all.
    """
    from train import load_recipe, read_config
    from uner_jax.training.plan import print_plan
    from uner_jax.training.topologies import parse_topologies

    topologies, found = parse_topologies(topology), load_recipe(recipe)
    return lambda fields: print_plan(read_config(found, f"uner plan {recipe}", fields), topologies)


COMMANDS: dict[str, Callable[..., Any]] = {
    "convert from-hf": from_hf,
    "convert to-hf": to_hf,
    "convert to-gguf": to_gguf,
    "inspect": inspect,
    "extract": extract,
    "evaluate": evaluate,
    "view": view,
    "export": export,
    "demo": demo,
    "ask": ask,
    "plan": plan,
}
# with this option a command is another one.
INSTEAD: dict[str, dict[str, Callable[..., Any]]] = {
    "extract": {"--merge": merge},
    "evaluate": {"--compare": compare},
}


def _labels(labels: str, labels_file: Path | None) -> list[str]:
    listed = _listed(labels)
    if labels_file is not None:
        if not labels_file.is_file():
            raise InputError(f"{labels_file}: no such file")
        listed += [line.strip() for line in labels_file.read_text(encoding="utf-8").splitlines() if line.strip()]
    return list(dict.fromkeys(listed))


def _listed(words: str) -> list[str]:
    return list(dict.fromkeys(word.strip() for word in words.split(",") if word.strip()))


def _shard(shard: str | None) -> tuple[int, int]:
    if shard is None:
        from uner_jax.mesh import process_place

        return process_place()
    index, _, shards = shard.partition("/")
    if not (index.isdecimal() and shards.isdecimal() and int(index) < int(shards)):
        raise InputError(f"--shard {shard!r} must be I/N with I from 0 to N-1, such as 0/4")
    return int(index), int(shards)


def _usage() -> str:
    lines = [f"  uner {name:16} {(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    return "\n".join(["Open named-entity recognition. Each command has --help; --debug shows tracebacks.", "", *lines])


def _run(name: str, command: Callable[..., Any], arguments: list[str]) -> None:
    for option, other in INSTEAD.get(name, {}).items():
        if any(argument.partition("=")[0] == option for argument in arguments):
            command = other
    if command is not plan:
        tyro.cli(command, prog=f"uner {name}", args=arguments)
        return
    # the recipe says which further fields there are.
    with_fields, fields = tyro.cli(plan, prog=f"uner {name}", args=arguments, return_unknown_args=True)
    with_fields(fields)


def dispatch(arguments: list[str]) -> None:
    """Run the command that the arguments begin with; leaves with 2 if there is no such command."""
    for name, command in COMMANDS.items():
        words = name.split()
        if arguments[: len(words)] == words:
            _run(name, command, arguments[len(words) :])
            return
    asked = not set(arguments).isdisjoint({"-h", "--help"})
    print(_usage(), file=sys.stdout if asked else sys.stderr)
    sys.exit(0 if asked else 2)


def main() -> None:
    """The command line."""
    use_huge_pages()
    keep_programs()
    run_command(dispatch)


if __name__ == "__main__":
    main()
