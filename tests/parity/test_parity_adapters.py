"""Our adapters are PEFT's: what one side trains and saves, the other loads, and both compute the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from uner_jax.model.adapters import TARGETS, AdapterConfig, adapt, split
from uner_jax.model.config import LlamaConfig
from uner_jax.model.llama import Llama
from uner_jax.model.parameters import abstract_model, flatten, unflatten
from uner_jax.tokenizer import load_tokenizer
from uner_jax.weights import load_model
from uner_jax.weights.adapter import Adapter, flat_shape
from uner_jax.weights.hf import write_hf
from uner_jax.weights.peft import write_peft

CONFIG = LlamaConfig(
    vocab_size=512,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=300,
)
# PEFT asks transformers by a name that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TOKENS = np.random.default_rng(0).integers(3, 512, (2, 40))
CASES = [(TARGETS, False), (("q_proj", "v_proj"), True), (("o_proj", "down_proj"), False)]


@pytest.fixture(scope="module")
def tokenizer(shared_data):
    return load_tokenizer(shared_data / "models" / "stories260K" / "tok512.model")


@pytest.fixture(scope="module")
def base(tokenizer, tmp_path_factory):
    random = np.random.default_rng(1)
    model = abstract_model(CONFIG)
    leaves = {n: jnp.asarray(random.normal(size=x.shape) * 0.1, jnp.float32) for n, x in flatten(model).items()}
    directory = tmp_path_factory.mktemp("base") / "hf"
    write_hf(unflatten(model, leaves), tokenizer, directory)
    return directory


def theirs(base):
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def their_logits(model):
    with torch.no_grad():
        return model(torch.from_numpy(TOKENS)).logits.numpy()


def our_logits(model: Llama):
    return np.asarray(model(jnp.asarray(TOKENS, jnp.int32)))


@pytest.mark.parametrize(("targets", "rslora"), CASES)
def test_an_adapter_of_peft_is_loaded(targets, rslora, base, tmp_path):
    torch.manual_seed(0)
    config = LoraConfig(
        r=4, lora_alpha=12, target_modules=list(targets), use_rslora=rslora, init_lora_weights=False,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    adapted = get_peft_model(theirs(base), config)
    adapted.save_pretrained(tmp_path / "adapter")
    expected = their_logits(adapted)
    assert np.abs(expected - their_logits(theirs(base))).max() > 0.1
    assert our_logits(load_model(tmp_path / "adapter")) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("targets", [targets for targets, _ in CASES])
def test_an_adapter_of_ours_is_loaded_by_peft(targets, base, tokenizer, tmp_path):
    config = AdapterConfig(rank=4, alpha=12.0, targets=targets)
    model = adapt(load_model(base), config, jax.random.key(0))
    trained, _ = split(model)
    random = np.random.default_rng(2)
    leaves = {name: jnp.asarray(random.normal(size=x.shape) * 0.3, jnp.float32) for name, x in flatten(trained).items()}
    ours = our_logits(unflatten(model, flatten(model) | leaves))
    flat = {name: np.asarray(leaf).reshape(flat_shape(name, leaf.shape)) for name, leaf in leaves.items()}
    write_peft(Adapter("here", config, str(base), flat), tokenizer, tmp_path / "adapter")
    found = their_logits(PeftModel.from_pretrained(theirs(base), tmp_path / "adapter"))
    assert np.abs(found - their_logits(theirs(base))).max() > 0.1
    assert ours == pytest.approx(found, abs=1e-4)
