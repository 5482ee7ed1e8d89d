"""LLaMA in Flax NNX."""
