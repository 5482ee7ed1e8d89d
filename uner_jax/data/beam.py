"""What every pipeline on Apache Beam begins with. Beam is an extra, in an environment of its own."""

from collections.abc import Sequence
from typing import Any

from uner_jax.records import InputError


def pipeline_options(runner: str, options: Sequence[str]) -> Any:
    """Beam's PipelineOptions: the runner, and its options as `option=value`.

    Raises InputError if Beam is not installed, and for a mode of Beam that loses records.
    """
    try:
        from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "apache_beam":
            raise
        raise InputError(
            "--beam-runner needs Apache Beam, in an environment of its own: pip install 'uner-jax[beam]'"
        ) from error
    known = PipelineOptions([f"--runner={runner}", *(f"--{option}" for option in options)])
    if known.view_as(DirectOptions).direct_running_mode == "multi_threading":
        raise InputError(
            "direct_running_mode=multi_threading loses records of such a pipeline without an error; "
            "take multi_processing, or in_memory with one worker"
        )
    return known
