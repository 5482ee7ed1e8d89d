"""Open named-entity recognition with a small LLaMA, in JAX."""
