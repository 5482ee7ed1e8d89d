"""AdamW and its learning-rate schedule, as in the paper (arXiv 2308.03279, section 4.1; arXiv 1711.05101)."""

import optax

from uner_jax.training.config import OptimizerConfig

BETAS = (0.9, 0.999)


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by the number of steps already made: a linear warm-up, then the schedule, to 0 after `steps`."""
    warmup = round(config.warmup_ratio * steps)
    rest = max(1, steps - warmup)
    decay: optax.Schedule
    if config.schedule == "cosine":
        decay = optax.cosine_decay_schedule(config.learning_rate, rest)
    elif config.schedule == "linear":
        decay = optax.linear_schedule(config.learning_rate, 0.0, rest)
    else:
        decay = optax.constant_schedule(config.learning_rate)
    rise = optax.linear_schedule(0.0, config.learning_rate, max(1, warmup))
    return optax.join_schedules([rise, decay], [warmup])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW."""
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    adamw = optax.adamw(
        make_schedule(config, steps), *BETAS, weight_decay=config.weight_decay, mu_dtype=config.first_moment_dtype
    )
    return optax.chain(clip, adamw)
