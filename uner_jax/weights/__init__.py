"""Weights in and out: Hugging Face directories, GGUF files, our checkpoints."""

from uner_jax.weights.load import load_model, load_model_tokenizer

__all__ = ["load_model", "load_model_tokenizer"]
