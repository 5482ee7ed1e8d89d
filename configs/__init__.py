"""Training recipes: each file has a function `config()` that returns a TrainConfig."""
