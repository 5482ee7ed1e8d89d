"""Attention over packed rows, by platform: the reference anywhere, splash attention on TPUs, cuDNN on GPUs.

The fused kernels see whole rows on one device and are opaque to the partitioner, so each runs under `shard_map`: rows
are cut over `data` and `fsdp`, heads over `tensor`.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from uner_jax.mesh import partition_spec
from uner_jax.model.attention import causal_attention

# B batch, T tokens, H query heads, K kv heads, G = H // K, Dh head width, M segments of a row at most

Kernel = Literal["reference", "splash", "cudnn"]

# Tokens of a block of splash attention: the largest that divides a row is taken.
SPLASH_BLOCKS = 512, 256, 128
# What cuDNN's kernel for packed rows asks for.
CUDNN_DTYPES = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)
CUDNN_WIDEST_HEAD = 128
CUDNN_CAPABILITY = 9.0


@dataclasses.dataclass(frozen=True)
class Attention:
    """A kernel, and how many segments a row has at most, which cuDNN must know before it runs.

    `interpret` runs splash attention's steps one by one on any platform, for tests.
    """

    kernel: Kernel = "reference"
    segments: int = 0
    interpret: bool = False

    def __call__(
        self,
        q_BTHDh: jax.Array,
        k_BTKDh: jax.Array,
        v_BTKDh: jax.Array,
        segment_ids_BT: jax.Array | None,
    ) -> jax.Array:
        """Attention of each token to itself and those before it, of its own segment: (B, T, H, Dh), dtype of q.

        Without segment ids a row is one segment.
        """
        if self.kernel == "reference":
            return causal_attention(q_BTHDh, k_BTKDh, v_BTKDh, segment_ids_BT)
        if segment_ids_BT is None:
            segment_ids_BT = jnp.ones(q_BTHDh.shape[:2], jnp.int32)
        local = self._splash if self.kernel == "splash" else self._cudnn
        return _over_mesh(local, q_BTHDh, k_BTKDh, v_BTKDh, segment_ids_BT)

    def _splash(self, q_BTHDh, k_BTKDh, v_BTKDh, segment_ids_BT) -> jax.Array:
        # here, since importing Pallas takes a second that only TPUs need.
        from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
        from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

        batch, length, heads, width = q_BTHDh.shape
        kv_heads = k_BTKDh.shape[2]
        groups = heads // kv_heads
        block = next(size for size in SPLASH_BLOCKS if length % size == 0)
        sizes: dict[str, Any] = dict.fromkeys(_block_fields(splash.BlockSizes), block)
        mask = masks.MultiHeadMask([masks.CausalMask((length, length))] * groups)
        kernel = splash.make_splash_mqa(
            mask, block_sizes=splash.BlockSizes(**sizes), head_shards=1, q_seq_shards=1, interpret=self.interpret
        )
        # the kernel does not scale.
        scaled = (q_BTHDh.astype(jnp.float32) * width**-0.5).astype(q_BTHDh.dtype)
        q_BKGTDh = scaled.reshape(batch, length, kv_heads, groups, width).transpose(0, 2, 3, 1, 4)
        k_BKTDh, v_BKTDh = (x.transpose(0, 2, 1, 3) for x in (k_BTKDh, v_BTKDh))
        of_row = jax.vmap(kernel, in_axes=(0, 0, 0, None))
        mixed_BKGTDh = jax.vmap(of_row)(q_BKGTDh, k_BKTDh, v_BKTDh, splash.SegmentIds(segment_ids_BT, segment_ids_BT))
        return mixed_BKGTDh.transpose(0, 3, 1, 2, 4).reshape(q_BTHDh.shape)

    def _cudnn(self, q_BTHDh, k_BTKDh, v_BTKDh, segment_ids_BT) -> jax.Array:
        from jax._src.cudnn import fused_attention_stablehlo as cudnn

        lengths_BM, starts_BM1 = segment_layout(segment_ids_BT, self.segments)
        mixed_BTHDh = cudnn.dot_product_attention(
            q_BTHDh,
            k_BTKDh,
            v_BTKDh,
            q_seqlen=lengths_BM,
            kv_seqlen=lengths_BM,
            q_offsets=starts_BM1,
            kv_offsets=starts_BM1,
            scale=q_BTHDh.shape[-1] ** -0.5,
            mask_type=cudnn.MaskType.PADDING_CAUSAL,
        )
        # what lies behind the last segment is never written.
        return jnp.where(segment_ids_BT[:, :, None, None] > 0, mixed_BTHDh, jnp.zeros_like(mixed_BTHDh))


def _block_fields(block_sizes: type) -> list[str]:
    return [field.name for field in dataclasses.fields(block_sizes) if field.name.startswith("block_")]


def _over_mesh(
    attend: Callable[..., jax.Array],
    q_BTHDh: jax.Array,
    k_BTKDh: jax.Array,
    v_BTKDh: jax.Array,
    segment_ids_BT: jax.Array,
) -> jax.Array:
    """`attend` on each device's rows and heads under the mesh of the context; without one, on all."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return attend(q_BTHDh, k_BTKDh, v_BTKDh, segment_ids_BT)
    sizes = dict(mesh.shape)
    queries = partition_spec(q_BTHDh.shape, ("batch", None, "heads", None), sizes)
    keys = partition_spec(k_BTKDh.shape, ("batch", None, "kv_heads", None), sizes)
    if keys[2] != queries[2]:
        # fewer key-value heads than devices: each query head gets its own copy.
        groups = q_BTHDh.shape[2] // k_BTKDh.shape[2]
        k_BTKDh, v_BTKDh = (jnp.repeat(x, groups, axis=2) for x in (k_BTKDh, v_BTKDh))
        keys = queries
    specs = queries, keys, keys, P(queries[0], None)
    mapped = jax.shard_map(attend, mesh=mesh, in_specs=specs, out_specs=queries, check_vma=False)
    return mapped(q_BTHDh, k_BTKDh, v_BTKDh, segment_ids_BT)


def segment_layout(segment_ids_BT: jax.Array, segments: int) -> tuple[jax.Array, jax.Array]:
    """Lengths (B, M) and starts (B, M + 1) of the segments 1..M of each row, int32; -1 where there is none.

    The segments follow each other from the row's start, and padding (id 0) is at its end.
    """
    numbers_M = jnp.arange(1, segments + 1, dtype=segment_ids_BT.dtype)
    lengths_BM = jnp.sum(segment_ids_BT[:, :, None] == numbers_M, axis=1, dtype=jnp.int32)
    starts_BM = jnp.cumsum(lengths_BM, axis=1, dtype=jnp.int32) - lengths_BM
    none = jnp.full((), -1, jnp.int32)
    lengths_BM, starts_BM = (jnp.where(lengths_BM > 0, x, none) for x in (lengths_BM, starts_BM))
    return lengths_BM, jnp.pad(starts_BM, ((0, 0), (0, 1)), constant_values=-1)


def choose_attention(
    mesh: Mesh, row_length: int, segments: int, head_width: int, dtype: jnp.dtype
) -> tuple[Attention, str | None]:
    """The best attention for the mesh's devices, and why it is not the platform's fused kernel, if it is not.

    The platform is that of the mesh's own devices: a step may be compiled for devices that this machine has not.
    """
    device = mesh.devices.flat[0]
    if device.platform == "tpu":
        if row_length % SPLASH_BLOCKS[-1]:
            return Attention(), f"splash attention needs rows of a multiple of {SPLASH_BLOCKS[-1]} tokens"
        return Attention("splash"), None
    if device.platform in ("gpu", "cuda"):
        why = _why_not_cudnn(device, head_width, dtype)
        return (Attention(), why) if why else (Attention("cudnn", segments), None)
    return Attention(), None


def _why_not_cudnn(device: Any, head_width: int, dtype: jnp.dtype) -> str | None:
    if dtype not in CUDNN_DTYPES:
        return f"cuDNN attention needs bfloat16, found {dtype} (set dtype)"
    if head_width > CUDNN_WIDEST_HEAD or head_width % 8:
        return f"cuDNN attention needs heads of a multiple of 8 up to {CUDNN_WIDEST_HEAD} channels, found {head_width}"
    capability = getattr(device, "compute_capability", None)
    if capability is not None and float(capability) < CUDNN_CAPABILITY:
        return f"cuDNN attention over packed rows needs compute capability {CUDNN_CAPABILITY}, found {capability}"
    try:
        from jax._src.cudnn import fused_attention_stablehlo as cudnn

        parameters = inspect.signature(cudnn.dot_product_attention).parameters
        cudnn.check_cudnn_version()
    except (ImportError, AttributeError, RuntimeError) as error:
        return f"cuDNN attention is not to be had: {error}"
    missing = {"q_seqlen", "kv_seqlen", "q_offsets", "kv_offsets"} - parameters.keys()
    return f"this version of jax has no packed cuDNN attention (no {', '.join(sorted(missing))})" if missing else None
