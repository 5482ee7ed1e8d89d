"""Other runtimes that answer the requests of benchmarks/extraction.py, each in its best offline use.

Each is given the model, the most tokens of an answer and the end of turn, and maps requests to answers, of token ids
on both sides. All decode greedily in float32, on as many threads as the process has cores; what can wait without
spinning does, since CPU time is what is compared.
"""

# B batch, T tokens, V vocabulary

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from uner_jax.extraction.engine import Request

BATCH = 32
CACHE_GB = 2
STEP_TOKENS = 2048
# in no prompt, as the end of turn is, which the model names as its padding.
PADDING = 0

Answers = list[list[int]]


class Transformers:
    """transformers with torch: batches of like lengths, padded on the left."""

    def __init__(self, model: str, max_new_tokens: int, eos_id: int):
        import torch
        from transformers import AutoModelForCausalLM

        self._torch = torch
        self._model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self._settings = {"do_sample": False, "max_new_tokens": max_new_tokens, "pad_token_id": eos_id}
        self._eos_id = eos_id

    def __call__(self, requests: Sequence[Request]) -> Answers:  # noqa: D102
        answers: Answers = [[] for _ in requests]
        for places, tokens_BT, mask_BT in _batches(requests):
            with self._torch.inference_mode():
                written_BT = self._model.generate(
                    self._torch.from_numpy(tokens_BT),
                    attention_mask=self._torch.from_numpy(mask_BT),
                    eos_token_id=self._eos_id,
                    **self._settings,
                )
            for place, row in zip(places, written_BT[:, tokens_BT.shape[1] :].tolist(), strict=True):
                answers[place] = _ended(row, self._eos_id)
        return answers

    def gap(self, request: Request, ours: Sequence[int], theirs: Sequence[int]) -> float:
        """How much likelier, in logits, one of the first two different tokens is than the other."""
        same = next(place for place, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other)
        with self._torch.inference_mode():
            tokens = self._torch.tensor([[*request.context, *request.question, *ours[:same]]])
            logits_V = self._model(tokens).logits[0, -1]
        return abs(float(logits_V[ours[same]] - logits_V[theirs[same]]))


class Onnx:
    """onnxruntime-genai: a context is read once, and each question rewinds to its end.

    It rewinds one row only, and even so is faster than batches, which cost 1.4 times as much and read a context with
    every question.
    """

    def __init__(self, model: str, max_new_tokens: int, eos_id: int):
        import onnxruntime_genai

        self._runtime = onnxruntime_genai
        self._max_new_tokens = max_new_tokens
        threads = {"intra_op_num_threads": _threads(), "session.intra_op.allow_spinning": "0"}
        config = onnxruntime_genai.Config(model)
        # its mask leaves out all that is padding, wherever it stands.
        config.overlay(json.dumps({"model": {"pad_token_id": PADDING, "decoder": {"session_options": threads}}}))
        self._model = onnxruntime_genai.Model(config)

    def __call__(self, requests: Sequence[Request]) -> Answers:  # noqa: D102
        answers = []
        for context, group in itertools.groupby(requests, lambda request: request.context):
            questions = [request.question for request in group]
            longest = len(context) + max(map(len, questions)) + self._max_new_tokens
            settings = self._runtime.GeneratorParams(self._model)
            settings.set_search_options(max_length=longest, do_sample=False)
            generator = self._runtime.Generator(self._model, settings)
            generator.append_tokens(np.asarray(context, np.int32))
            for question in questions:
                generator.rewind_to(len(context))
                generator.append_tokens(np.asarray(question, np.int32))
                answer: list[int] = []
                while len(answer) < self._max_new_tokens and not generator.is_done():
                    generator.generate_next_token()
                    answer.append(int(generator.get_next_tokens()[0]))
                answers.append(answer)
        return answers


class OpenVino:
    """openvino-genai's LLMPipeline: batches of like lengths, padded on the left."""

    def __init__(self, model: str, max_new_tokens: int, eos_id: int):
        import openvino
        import openvino_genai

        self._core, self._runtime = openvino, openvino_genai
        self._eos_id = eos_id
        self._settings = _openvino_settings(max_new_tokens, eos_id)
        # its other attention takes one prompt at a time.
        self._pipeline = openvino_genai.LLMPipeline(model, "CPU", ATTENTION_BACKEND="SDPA", **_openvino_float32())

    def __call__(self, requests: Sequence[Request]) -> Answers:  # noqa: D102
        answers: Answers = [[] for _ in requests]
        for places, tokens_BT, mask_BT in _batches(requests):
            inputs = self._runtime.TokenizedInputs(self._core.Tensor(tokens_BT), self._core.Tensor(mask_BT))
            written = self._pipeline.generate(inputs, self._settings).tokens
            for place, row in zip(places, written, strict=True):
                answers[place] = _ended(row, self._eos_id)
        return answers


class OpenVinoCached:
    """openvino-genai's continuous batching with its cache of prefixes.

    What is asked together finds nothing in the cache: the first question on each context is asked before the rest,
    which halves the CPU time.
    """

    def __init__(self, model: str, max_new_tokens: int, eos_id: int):
        import openvino
        import openvino_genai

        self._core = openvino
        self._eos_id = eos_id
        self._settings = _openvino_settings(max_new_tokens, eos_id)
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        scheduler.cache_size = CACHE_GB
        scheduler.max_num_batched_tokens = STEP_TOKENS
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(model, scheduler, "CPU", _openvino_float32())

    def __call__(self, requests: Sequence[Request]) -> Answers:  # noqa: D102
        answers: Answers = [[] for _ in requests]
        first = {request.context: place for place, request in reversed(list(enumerate(requests)))}
        rest = set(range(len(requests))) - set(first.values())
        for places in (sorted(first.values()), sorted(rest)):
            prompts = [self._core.Tensor(np.asarray([_prompt(requests[place])], np.int64)) for place in places]
            written = self._pipeline.generate(prompts, [self._settings] * len(prompts)) if prompts else []
            for place, result in zip(places, written, strict=True):
                answers[place] = _ended(result.m_generation_ids[0], self._eos_id)
        return answers


class LlamaCpp:
    """llama.cpp, from the wheel of xllamacpp, whose kernels go up to AVX2: one slot, which keeps the last prompt.

    More slots are slower: eight cost 1.25 times as much. Ids come with probabilities only, here the sampler's, which
    are those of one token.
    """

    def __init__(self, model: str, max_new_tokens: int, eos_id: int):
        import xllamacpp

        settings = xllamacpp.CommonParams()
        settings.model.path = model
        settings.n_parallel, settings.n_ctx, settings.n_batch = 1, 0, STEP_TOKENS
        settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = _threads()
        settings.cpuparams.poll = settings.cpuparams_batch.poll = 0
        settings.verbosity = 0
        self._server = xllamacpp.Server(settings)
        self._eos_id = eos_id
        self._settings = {
            "n_predict": max_new_tokens,
            "temperature": 0,
            "samplers": ["temperature"],
            "logprobs": 1,
            "post_sampling_probs": True,
            "cache_prompt": True,
        }

    def __call__(self, requests: Sequence[Request]) -> Answers:  # noqa: D102
        prompts = [_prompt(request) for request in requests]
        choices = self._server.handle_completions({**self._settings, "prompt": prompts})["choices"]
        answers: Answers = [[] for _ in requests]
        for choice in choices:
            tokens = [token["id"] for token in choice["logprobs"]["content"]]
            answers[choice["index"]] = _ended(tokens, self._eos_id)
        return answers


def _threads() -> int:
    return len(os.sched_getaffinity(0))


def _prompt(request: Request) -> list[int]:
    return [*request.context, *request.question]


def _batches(requests: Sequence[Request]) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
    """Places in `requests`, tokens_BT and mask_BT int64, padded on the left, from the shortest to the longest."""
    prompts = [_prompt(request) for request in requests]
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    for places in (order[first : first + BATCH] for first in range(0, len(order), BATCH)):
        width = max(len(prompts[place]) for place in places)
        tokens_BT = np.full((len(places), width), PADDING, np.int64)
        mask_BT = np.zeros_like(tokens_BT)
        for row, place in enumerate(places):
            tokens_BT[row, width - len(prompts[place]) :] = prompts[place]
            mask_BT[row, width - len(prompts[place]) :] = 1
        yield places, tokens_BT, mask_BT


def _ended(tokens: Sequence[int], eos_id: int) -> list[int]:
    """Up to and with the end of turn."""
    answer = list(tokens)
    return answer[: answer.index(eos_id) + 1] if eos_id in answer else answer


def _openvino_float32() -> dict[str, str]:
    """Without these it computes in bfloat16 where the CPU can, and keeps keys and values in eight bits."""
    return {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}


def _openvino_settings(max_new_tokens: int, eos_id: int) -> Any:
    import openvino_genai

    settings = openvino_genai.GenerationConfig()
    settings.do_sample = False
    settings.max_new_tokens = max_new_tokens
    settings.eos_token_id = eos_id
    settings.stop_token_ids = {eos_id}
    return settings
