"""The model card of an exported directory: what it was trained on and how, how it is used, and whose terms it carries.

What is not recorded is said to be unknown, and never guessed: a licence is named only where the base's own card or
the user names it.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from uner_jax.template import ACKNOWLEDGEMENT, passage_turn, question_turn
from uner_jax.weights.origin import CARD_NAME, Origin

# fields of a recipe that the card shows, by the words for them.
RECIPE = {
    "base": "model.source",
    "data set": "data.name",
    "rows a step": "data.batch_size",
    "tokens a row": "data.row_length",
    "epochs, where steps are not given": "epochs",
    "peak learning rate": "optimizer.learning_rate",
    "schedule": "optimizer.schedule",
    "warm-up ratio": "optimizer.warmup_ratio",
    "weight decay": "optimizer.weight_decay",
    "gradient norm, at most": "optimizer.clip_norm",
    "dtype of the computation": "dtype",
    "LoRA rank (0: all weights)": "adapter.rank",
    "LoRA alpha": "adapter.alpha",
    "base kept in": "adapter.base",
    "seed": "seed",
}
TAGS = ["named-entity-recognition", "universal-ner", "information-extraction", "llama"]
LLAMA = """\
- If the base is a LLaMA of Meta, or was made from one, Meta's terms go with these weights too. LLaMA 1: research only,
  not for commercial use. Llama 2 and 3: the Community License and its Acceptable Use Policy; whoever passes the weights
  on adds a copy of the licence and its notice, and from Llama 3 on names the model "Llama ..." and says so where it is
  used. Whether it is one is {llama}."""
PILE = """\
- Conversations of Pile-NER are CC BY-NC 4.0, not for commercial use, and their answers were written by ChatGPT, under
  OpenAI's terms. Whether these weights were trained on them is {pile}."""


@dataclasses.dataclass(frozen=True)
class Card:
    """What only the user knows of a model, for its card."""

    base_model: str = ""
    """Name of the base on the Hugging Face Hub, as meta-llama/Llama-2-7b-hf."""
    license: str = ""
    """Licence of the weights, by the Hub's names: llama2, apache-2.0, cc-by-nc-4.0. By default the base's, if known."""
    datasets: tuple[str, ...] = ()
    """Names of the training data on the Hub, as Universal-NER/Pile-NER-type."""
    language: tuple[str, ...] = ("en",)
    """Languages of the texts, by their codes; the prompt itself is English."""


def write_card(directory: Path, card: Card, origin: Origin, has_template: bool, adapter_of: str = "") -> None:
    """Write README.md; `adapter_of` names the base where the directory holds an adapter only."""
    text = f"{_front_matter(card, origin, bool(adapter_of))}\n{_body(card, origin, has_template, adapter_of)}"
    (directory / CARD_NAME).write_text(text, encoding="utf-8")


def _front_matter(card: Card, origin: Origin, is_adapter: bool) -> str:
    """YAML, each value in JSON, which is YAML too."""
    license = card.license or origin.license
    fields: dict[str, Any] = {"license": license or "other"}
    if not license:
        fields["license_name"] = "unknown"
    if card.base_model:
        fields["base_model"] = card.base_model
    if card.datasets:
        fields["datasets"] = list(card.datasets)
    fields |= {
        "language": list(card.language),
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": TAGS,
    }
    return "\n".join(["---", *(f"{name}: {json.dumps(value)}" for name, value in fields.items()), "---", ""])


def _body(card: Card, origin: Origin, has_template: bool, adapter_of: str) -> str:
    what = (
        f"A LoRA adapter for `{card.base_model or _name(adapter_of)}`"
        if adapter_of
        else "A language model of LLaMA's architecture"
    )
    parts = [
        "# Open named-entity recognition",
        f"{what} that is asked for the entities of one type in a passage and answers with a JSON list of their texts, "
        "in the prompt of [UniversalNER](https://arxiv.org/abs/2308.03279).",
        "## Use",
        _use(has_template, bool(adapter_of), origin),
        "## Training",
        _training(card, origin),
        "## Licence",
        _licence(card, origin),
    ]
    return "\n\n".join(parts) + "\n"


def _use(has_template: bool, is_adapter: bool, origin: Origin) -> str:
    uner = (
        "With uner_jax, offsets included:\n\n```python\nfrom uner_jax import Extractor\n\n"
        'ner = Extractor.from_pretrained("DIRECTORY")\n'
        'ner.predict_entities("Ada met Grace in Paris.", ["person", "location"])\n```\n\n'
        "or `uner extract --model DIRECTORY --input documents.jsonl --labels person,location --output OUT`."
    )
    if origin.noun != "text":
        uner += f' The prompt says "provided {origin.noun}"; both take that from this directory.'
    if not has_template:
        return f"{uner}\n\nThe tokenizer allows no chat template that gives the ids of training: use uner_jax to ask."
    load = (
        'model = AutoPeftModelForCausalLM.from_pretrained("DIRECTORY")'
        if is_adapter
        else 'model = AutoModelForCausalLM.from_pretrained("DIRECTORY")'
    )
    imports = "from peft import AutoPeftModelForCausalLM\n" if is_adapter else ""
    messages = [
        ("user", passage_turn("Ada met Grace in Paris.")),
        ("assistant", ACKNOWLEDGEMENT),
        ("user", question_turn("person")),
    ]
    listed = "".join(f"    {json.dumps({'role': role, 'content': content})},\n" for role, content in messages)
    return (
        f"{uner}\n\nWith transformers, whose chat template gives the same ids:\n\n```python\n{imports}"
        f"from transformers import {'AutoTokenizer' if is_adapter else 'AutoModelForCausalLM, AutoTokenizer'}\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("DIRECTORY")\n{load}\n'
        f"messages = [\n{listed}]\n"
        'inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", '
        "return_dict=True)\n"
        "answer = model.generate(**inputs, max_new_tokens=256, do_sample=False)"
        '[0, inputs["input_ids"].shape[1] :]\n'
        "print(tokenizer.decode(answer, skip_special_tokens=True))\n```"
    )


def _training(card: Card, origin: Origin) -> str:
    data = ", ".join(f"`{name}`" for name in card.datasets) or "not recorded by its name on the Hub"
    if origin.recipe is None:
        known = "The recipe is not recorded with these weights."
        return f"{known} Training data: {data}." + (f" Converted from `{_name(origin.base)}`." if origin.base else "")
    rows = {words: _field(origin.recipe, name) for words, name in RECIPE.items()}
    rows = {"optimizer steps": origin.step} | rows
    rows["base"] = f"`{_name(rows['base'])}`" if rows["base"] else "random weights"
    versions = ", ".join(f"{name} {version}" for name, version in origin.recipe.get("versions", {}).items())
    lines = [f"| {words} | {value} |" for words, value in rows.items() if value is not None]
    return f"Trained by uner_jax ({versions or 'versions unknown'}). Training data: {data}.\n\n" + "\n".join(
        ["| recipe | |", "|---|---|", *lines]
    )


def _licence(card: Card, origin: Origin) -> str:
    if card.license:
        first = f"- The licence of these weights is `{card.license}`, as whoever exported them says."
    elif origin.license:
        first = f"- The model card of the base states `{origin.license}`, and these weights are derived from it."
    else:
        first = "- The licence of these weights is unknown: none is recorded. Ask whoever made them before use."
    base = card.base_model or _name(origin.base)
    llama = f"not recorded; the base is named `{base}`" if base else "not recorded"
    trained_on = " ".join([*card.datasets, str(_field(origin.recipe or {}, "data.name") or "")])
    pile = f"likely: the data is named `{trained_on.strip()}`" if "pile" in trained_on.lower() else "not recorded"
    return "\n".join([first, LLAMA.format(llama=llama), PILE.format(pile=pile)])


def _name(path: str) -> str:
    # a card is published, and the rest of a path is of the machine's owner.
    return Path(path).name


def _field(recipe: dict[str, Any], name: str) -> Any:
    value: Any = recipe
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
