"""The training run: config, optimizer, loss, step, loop, checkpoints."""
