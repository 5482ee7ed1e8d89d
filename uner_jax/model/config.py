"""The architecture of a LLaMA, and of the families that are a LLaMA with a few declared differences."""

import dataclasses
from typing import Literal, get_args

from uner_jax.records import InputError


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the length of pre-training.

    `linear` divides all frequencies by `factor`; `llama3` divides the low ones, keeps the high ones
    and blends between (LLaMA 3.1 model card). The last three fields serve `llama3` only.
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


# By the names of Hugging Face's model types. mistral and smollm3 differ by fields below alone.
Family = Literal["llama", "mistral", "qwen2", "qwen3", "smollm3"]


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes and switches of a LLaMA, under the names of Hugging Face's LlamaConfig; layers count from 0.

    A `sliding_window` of W tokens hides nothing in a row of at most W: such a model accepts no longer rows.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    family: Family = "llama"
    sliding_window: int | None = None
    layers_without_rope: tuple[int, ...] = ()

    def __post_init__(self):
        # JSON has lists only, and a config must be hashable; the order says nothing.
        object.__setattr__(self, "layers_without_rope", tuple(sorted(set(self.layers_without_rope))))
        if self.num_attention_heads % self.num_key_value_heads:
            raise InputError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise InputError(f"head_dim {self.head_dim} is odd; rotary embeddings need pairs")
        if self.family not in get_args(Family):
            raise InputError(f"family {self.family!r} is not supported; expected one of {', '.join(get_args(Family))}")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise InputError(f"sliding_window must be at least 1 token, found {self.sliding_window}")
        last = self.num_hidden_layers - 1
        if any(not 0 <= layer <= last for layer in self.layers_without_rope):
            raise InputError(f"layers_without_rope {self.layers_without_rope} names a layer outside of 0..{last}")

    @property
    def query_key_norm(self) -> bool:
        """Whether each head's queries and keys are normalised before they are rotated."""
        return self.family == "qwen3"

    @property
    def query_key_value_bias(self) -> bool:
        """Whether the projections into attention have biases; `attention_bias` says it of the one out of it too."""
        return self.attention_bias or self.family == "qwen2"

    @property
    def longest_row(self) -> int:
        """The tokens of the longest row that the model accepts."""
        return min(self.max_position_embeddings, self.sliding_window or self.max_position_embeddings)

    @property
    def row_limit(self) -> str:
        """What sets `longest_row`, in words for an error."""
        if self.longest_row == self.max_position_embeddings:
            return f"max_position_embeddings {self.max_position_embeddings}"
        return f"sliding_window {self.sliding_window} (rows that need the window itself are not supported)"
