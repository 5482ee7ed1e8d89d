"""Are the engine's answers those of plain greedy decoding, and how many change in bfloat16?

pip install torch && python benchmarks/greedy.py --model DIR --questions CrossNER_AI.json
python benchmarks/greedy.py --model DIR --questions CrossNER_AI.json --passages 100 --bfloat16 --no-plain

Hardware: two CPU cores, 4 GB, an hour for 5,603 questions. Reaches: see benchmarks/results.md.

Plain is transformers in float32, one prompt at a time, whole, unpadded, and without a cache. It reads a prompt with
our answer behind it: where each of our tokens is the likeliest after all before it, greedy decoding writes this answer
and no other. Where one is not, how far it is from the likeliest in logits is printed: a tie is within the rounding of
float32, some 1e-4.
"""

import sys
from pathlib import Path
from typing import Any

import tyro
from extraction import Ours

from uner_jax.command import keep_programs, run_command
from uner_jax.evaluation.questions import read_questions
from uner_jax.evaluation.settings import Asking, DataSet
from uner_jax.extraction.engine import Request

REPORT_EVERY = 250


def greedy(
    model: str,
    questions: Path,
    passages: int | None = None,
    max_new_tokens: int = 64,
    bfloat16: bool = False,
    plain: bool = True,
) -> None:
    """Answer all questions, and print how many plain greedy decoding, or bfloat16, answers differently.

    Args:
        model: A Hugging Face directory of a fine-tuned model.
        questions: A file of questions in the published form.
        passages: As many of its passages; all by default.
        max_new_tokens: The most tokens of an answer.
        bfloat16: Answer in bfloat16 too.
        plain: Compare with transformers.
    """
    ours = Ours(model, "float32", max_new_tokens)
    asked = read_questions(DataSet(questions.stem, questions), Asking(passages))
    requests = [ours.request(question) for question in asked]
    answers = ours(requests)
    empty = sum(len(answer) <= 2 for answer in answers)
    written = sum(map(len, answers))
    print(f"float32: {len(answers):,} questions, {empty / len(answers):.1%} empty, {written:,} tokens", flush=True)
    if bfloat16:
        others = Ours(model, "bfloat16", max_new_tokens)(requests)
        changed = sum(one != other for one, other in zip(answers, others, strict=True))
        print(f"bfloat16: {changed:,} of {len(answers):,} answers are not those of float32", flush=True)
    if plain:
        compare_with_plain(model, requests, answers)


def compare_with_plain(model: str, requests: list[Request], answers: list[list[int]]) -> None:
    """Print how many of the answers are greedy, and the gap in logits of the first token of each other."""
    import torch
    from transformers import AutoModelForCausalLM

    reader: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    gaps = []
    for place, (request, answer) in enumerate(zip(requests, answers, strict=True), start=1):
        tokens = torch.tensor([[*request.context, *request.question, *answer]])
        with torch.inference_mode():
            logits_TV = reader(tokens, logits_to_keep=len(answer) + 1).logits[0, :-1]
        ours_T1 = torch.tensor(answer)[:, None]
        gaps_T = logits_TV.max(dim=-1).values - logits_TV.gather(1, ours_T1)[:, 0]
        if gaps_T.any():
            gaps.append(float(gaps_T[gaps_T > 0][0]))
        if not place % REPORT_EVERY:
            print(f"{place:,} of {len(requests):,} compared, {len(gaps)} differ", file=sys.stderr, flush=True)
    told = ", ".join(f"{gap:.1e}" for gap in sorted(gaps)) or "-"
    print(f"plain: {len(answers) - len(gaps):,} of {len(answers):,} answers are equal; gaps of the rest: {told}")


def main(arguments: list[str]) -> None:
    """The command line."""
    tyro.cli(greedy, prog="python benchmarks/greedy.py", args=arguments)


if __name__ == "__main__":
    keep_programs()
    run_command(main)
