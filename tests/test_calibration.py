"""A temperature is found where there is one, and makes scores no less likely."""

import json

import numpy as np
import pytest

from uner_jax.evaluation.calibration import calibration, draw_reliability
from uner_jax.extraction.spans import calibrated
from uner_jax.records import InputError


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_of_overconfident_scores_is_found(temperature):
    random = np.random.default_rng(0)
    true = random.uniform(0.02, 0.98, 20_000)
    right = random.uniform(size=true.size) < true
    # what a model says that is too sure by that temperature.
    said = [calibrated(value, 1 / temperature) for value in true]
    found = calibration(said, right.tolist())
    assert found["temperature"] == pytest.approx(temperature, rel=0.06)
    assert found["after"]["loss"] <= found["before"]["loss"]
    assert found["after"]["expected_calibration_error"] < 0.02
    if temperature != 1.0:
        assert found["before"]["expected_calibration_error"] > 0.05
    assert sum(bin["items"] for bin in found["after"]["bins"]) == found["items"] == true.size


@pytest.mark.parametrize("right", [[], [True, True], [False]])
def test_without_right_and_wrong_items_there_is_nothing_to_find(right):
    with pytest.raises(InputError, match="calibration needs right and wrong ones"):
        calibration([0.5] * len(right), right)


def test_the_diagram_is_drawn(tmp_path):
    found = calibration([0.0, 1.0, 0.9, 0.3], [False, True, False, True])
    assert json.loads(json.dumps(found)) == found
    draw_reliability(found, tmp_path / "reliability.png")
    assert (tmp_path / "reliability.png").read_bytes().startswith(b"\x89PNG")
