"""The chat template of an exported directory makes the ids of our own prompt, in transformers."""

import dataclasses
import json
import zlib

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from uner_jax.model.config import LlamaConfig
from uner_jax.model.llama import Llama
from uner_jax.model.parameters import abstract_model, flatten, unflatten
from uner_jax.template import (
    ACKNOWLEDGEMENT,
    encode_conversation,
    encode_prompt,
    passage_turn,
    question_turn,
)
from uner_jax.tokenizer import Tokenizer, load_tokenizer
from uner_jax.weights.chat import chat_template, write_prompt
from uner_jax.weights.hf import write_hf
from uner_jax.weights.origin import Origin

TINY = LlamaConfig(512, 32, 48, 2, 4, 2, 8, max_position_embeddings=512)
HARD = [
    "",
    " two  spaces ",
    "line\nbreaks\n\n",
    "naïve café 🤖 東京",
    "{{ bos_token }} {% raw %}",
    "[INST] \\n \"q\" 'a'",
]


def prefix_of_first_text_only(tokenizer: Tokenizer) -> Tokenizer:
    """As newer conversions of SentencePiece have it: no space before a text behind a special token."""
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    state = json.loads(backend.to_str())
    state["normalizer"] = None
    backend = tokenizers.Tokenizer.from_str(json.dumps(state))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return dataclasses.replace(tokenizer, backend=backend)


@pytest.fixture(scope="module", params=["llama2", "SmolLM2", "tok512", "first"])
def ours(request, llama_tokenizer_path, smollm2_path, tok512) -> Tokenizer:
    made = {
        "llama2": lambda: load_tokenizer(llama_tokenizer_path),
        "SmolLM2": lambda: load_tokenizer(smollm2_path),
        "tok512": lambda: tok512,
        "first": lambda: prefix_of_first_text_only(tok512),
    }
    return made[request.param]()


@pytest.fixture(scope="module")
def conversations(shared_data) -> list[list[str]]:
    lines = (shared_data / "teacher" / "pile_ner_sample.jsonl").read_text(encoding="utf-8").splitlines()[::15]
    return [[turn["value"] for turn in json.loads(line)["conversations"]] for line in lines]


def messages_of(turns: list[str]) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[place % 2], "content": turn} for place, turn in enumerate(turns)]


def asked(passage: str, entity_type: str) -> list[dict[str, str]]:
    return messages_of([passage_turn(passage), ACKNOWLEDGEMENT, question_turn(entity_type)])


@pytest.mark.parametrize("noun", ["text", "paragraph"])
def test_the_template_makes_the_ids_of_a_prompt(noun, ours, conversations, tmp_path):
    assert write_prompt(tmp_path, ours, noun)
    theirs = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    passages = [turns[0].removeprefix("Text: ") for turns in conversations] + HARD
    assert len(passages) > 50
    for passage in passages:
        for entity_type in ("person", "événement  🤖"):
            found = theirs.apply_chat_template(
                asked(passage, entity_type), add_generation_prompt=True, tokenize=True, return_dict=False
            )
            assert found == encode_prompt(passage, entity_type, ours, noun=noun)


def test_the_template_makes_the_ids_of_a_whole_conversation(ours, conversations, tmp_path):
    write_prompt(tmp_path, ours, "text")
    theirs = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    for turns in conversations:
        record = {
            "id": "0",
            "conversations": [{"from": ("human", "gpt")[place % 2], "value": turn} for place, turn in enumerate(turns)],
        }
        found = theirs.apply_chat_template(messages_of(turns), tokenize=True, return_dict=False)
        assert found == encode_conversation(record, ours)[0]


def test_what_would_give_other_ids_is_refused(ours, tmp_path):
    write_prompt(tmp_path, ours, "text")
    theirs = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    eos = theirs.decode([ours.eos_id])
    wrong = [
        asked(f"the end {eos} of it", "person"),
        asked("Ada", "person")[1:],
        [*asked("Ada", "person"), {"role": "system", "content": "Be brief."}],
    ]
    for messages in wrong:
        with pytest.raises(Exception, match=r"special token|in turn"):
            theirs.apply_chat_template(messages, tokenize=False)


def test_a_tokenizer_that_allows_no_template_gets_none(tok512, tmp_path):
    backend = prefix_of_first_text_only(tok512).backend
    # so that nothing that stands behind </s> in a string brings the space that a text by itself gets.
    backend.normalizer = tokenizers.normalizers.Strip()
    strict = dataclasses.replace(tok512, backend=backend)
    assert chat_template(strict) is None
    write_hf(random_model(TINY), strict, tmp_path / "model")
    assert not (tmp_path / "model" / "chat_template.jinja").exists()
    assert "allows no chat template" in (tmp_path / "model" / "README.md").read_text()


@pytest.mark.parametrize("noun", ["text", "paragraph"])
def test_an_exported_directory_answers_in_transformers_with_nothing_else_said(noun, tok512, tmp_path):
    model = random_model(TINY)
    write_hf(model, tok512, tmp_path / "model", origin=Origin(noun=noun))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model", local_files_only=True)
    generation = GenerationConfig.from_pretrained(tmp_path / "model")
    assert (generation.do_sample, generation.max_new_tokens) == (False, 256)
    inputs = tokenizer.apply_chat_template(
        asked("Ada met Grace.", "person"), add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    prompt = encode_prompt("Ada met Grace.", "person", tok512, noun=noun)
    assert inputs["input_ids"][0].tolist() == prompt
    answer = theirs.generate(**inputs, max_new_tokens=5)[0, len(prompt) :].tolist()
    assert answer == greedy(model, prompt, 5)


def greedy(model: Llama, ids: list[int], count: int) -> list[int]:
    ids = list(ids)
    start = len(ids)
    for _ in range(count):
        padded = np.zeros((1, start + count), np.int32)
        padded[0, : len(ids)] = ids
        ids.append(int(np.asarray(model(jnp.asarray(padded)))[0, len(ids) - 1].argmax()))
    return ids[start:]


def random_model(config: LlamaConfig) -> Llama:
    model = abstract_model(config)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        return np.random.default_rng(zlib.crc32(name.encode())).normal(0, 0.3, shape).astype(np.float32)

    return unflatten(model, {name: jnp.asarray(draw(name, leaf.shape)) for name, leaf in flatten(model).items()})
