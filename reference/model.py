"""A Llama-family transformer: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Covers Llama 2 and 3, SmolLM2, Mistral, Qwen 2 (biases on q, k, v) and Qwen 3 (norms on q
and k). One forward pass takes a ragged batch packed row after row (`cache.Batch`): the
linear layers see T tokens without padding; only attention pads queries to a rectangle.

Shapes: T packed tokens, A rows, n new tokens of the longest row, L cached slots,
d hidden size, H query heads, J key/value heads, G = H / J, D head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference.cache import Batch, KVCache
from reference.rope import RopeScaling, rope_tables, rotate


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that decides the shapes and the arithmetic of a model."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_positions: int = 2048
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    tied_embeddings: bool = True
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"{self.num_heads} heads do not share {self.num_kv_heads} KV heads")
        if min(self.vocab_size, self.hidden_size, self.num_layers, self.head_dim) < 1:
            raise ValueError(f"a model dimension is below 1: {self}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} is odd; rotary positions need pairs")


class Linear(nn.Module):
    """y = x Wᵀ + b, with weights optionally repacked for the CPU.

    A decode step reads every weight once and computes little: on a CPU the plain
    row-major product runs at a third of the memory bandwidth. oneDNN's blocked layout
    (`pack`) reaches it. The packed copy replaces the weight; it cannot be trained.
    """

    #: oneDNN chooses the layout for this many rows; 4 suits 1 to 16 tokens.
    PACK_ROWS = 4

    def __init__(self, inputs: int, outputs: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.packed: Tensor | None = None

    def pack(self, *, keep: bool = False) -> None:
        """Repack in place; a no-op where oneDNN cannot.

        Args:
            keep: the weight stays as well (it is shared with the embedding). In float32
                oneDNN then multiplies by the plain weight: a twentieth slower, and no second
                copy. In bfloat16 that would halve its speed, so there a copy is made.
        """
        if not can_pack(self.weight):
            return
        weight = self.weight.detach()
        if keep and weight.dtype == torch.float32:
            self.packed = weight
            return
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, self.PACK_ROWS)
        if not keep:
            self.weight = nn.Parameter(self.weight.new_empty(0), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.packed is None:
            return F.linear(x, self.weight, self.bias)
        linear = torch.ops.mkldnn._linear_pointwise
        result: Tensor = linear(x, self.packed, self.bias, "none", [], "")
        return result


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN can hold this weight in its own layout."""
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if weight.device.type != "cpu" or not available:
        return False
    if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


class RMSNorm(nn.Module):
    """x / rms(x) · weight (Zhang & Sennrich 2019)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Layer(nn.Module):
    """One transformer layer; q, k, v and gate, up are fused into one matrix each."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c = self.config = config
        rows = (c.num_heads + 2 * c.num_kv_heads) * c.head_dim
        self.attention_norm = RMSNorm(c.hidden_size, c.norm_eps)
        self.qkv = Linear(c.hidden_size, rows, bias=c.qkv_bias)
        self.q_norm = RMSNorm(c.head_dim, c.norm_eps) if c.qk_norm else None
        self.k_norm = RMSNorm(c.head_dim, c.norm_eps) if c.qk_norm else None
        self.output = Linear(c.num_heads * c.head_dim, c.hidden_size, bias=c.output_bias)
        self.mlp_norm = RMSNorm(c.hidden_size, c.norm_eps)
        self.gate_up = Linear(c.hidden_size, 2 * c.intermediate_size, bias=c.mlp_bias)
        self.down = Linear(c.intermediate_size, c.hidden_size, bias=c.mlp_bias)

    def forward(
        self, x: Tensor, batch: Batch, keys: Tensor, values: Tensor, cos: Tensor, sin: Tensor
    ) -> Tensor:
        """(T, d) → (T, d); writes this layer's keys and values into its cache tensors."""
        x = x + self._attention(self.attention_norm(x), batch, keys, values, cos, sin)
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)  # (T, intermediate) each
        mlp: Tensor = self.down(F.silu(gate) * up)
        return x + mlp

    def _attention(
        self, x: Tensor, batch: Batch, keys: Tensor, values: Tensor, cos: Tensor, sin: Tensor
    ) -> Tensor:
        c = self.config
        heads = self.qkv(x).view(len(x), -1, c.head_dim)  # (T, H + 2J, D)
        qk, v = torch.split(heads, [c.num_heads + c.num_kv_heads, c.num_kv_heads], dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = torch.split(qk, [c.num_heads, c.num_kv_heads], dim=1)
            qk = torch.cat((self.q_norm(q), self.k_norm(k)), dim=1)
        qk = rotate(qk, cos, sin)
        q, k = torch.split(qk, [c.num_heads, c.num_kv_heads], dim=1)
        batch.write(keys, k)  # (T, J, D) → slots of (A, J, capacity, D)
        batch.write(values, v)
        result: Tensor = self.output(attend(q, keys, values, batch))
        return result


def attend(q: Tensor, keys: Tensor, values: Tensor, batch: Batch) -> Tensor:
    """Attention of packed queries (T, H, D) over the cache → (T, H·D).

    The G query heads that share a key head become G·n queries of that head, so that the
    cache is read once and never repeated.
    """
    a, n, h = batch.num_rows, batch.width, q.shape[1]
    j, d = keys.shape[1], keys.shape[3]
    keys = keys[:a, :, : batch.key_length]  # (A, J, L, D), a view
    values = values[:a, :, : batch.key_length]
    q = batch.pad(q)  # (A·n, H, D)
    q = q.view(a, n, j, h // j, d).permute(0, 2, 3, 1, 4).reshape(a, j, -1, d)  # (A, J, G·n, D)
    mask = batch.mask  # (A, 1, n, L) or None
    if mask is not None:
        mask = mask.unsqueeze(2).expand(-1, -1, h // j, -1, -1).flatten(2, 3)  # (A, 1, G·n, L)
    out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
    out = out.view(a, j, h // j, n, d).permute(0, 3, 1, 2, 4).reshape(a * n, h * d)
    return batch.unpad(out)  # (T, H·D)


@dataclass(frozen=True)
class Output:
    """What a forward pass gives: logits (selected, V), and features (T, F) if asked for."""

    logits: Tensor
    features: Tensor | None = None


class Model(nn.Module):
    """Token ids in, logits out, with all state in the cache that is passed in."""

    rope: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.head = Linear(config.hidden_size, config.vocab_size)
        if config.tied_embeddings:
            self.head.weight = self.embedding
        self.register_buffer("rope", torch.empty(0), persistent=False)
        self.set_rope()

    def set_rope(self, divisors: Tensor | None = None) -> None:
        """Fill the rotary tables, in the model's dtype and on its device."""
        c = self.config
        tables = rope_tables(c.head_dim, c.max_positions, c.rope_theta, c.rope_scaling, divisors)
        self.rope = tables.to(self.embedding)

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    def new_cache(self, rows: int, capacity: int, num_layers: int | None = None) -> KVCache:
        """An empty cache of `capacity` slots for each of `rows` sequences."""
        c = self.config
        if capacity > c.max_positions:
            raise ValueError(f"{capacity} slots exceed the model's {c.max_positions} positions")
        layers = c.num_layers if num_layers is None else num_layers
        shape = (layers, rows, c.num_kv_heads, capacity, c.head_dim)
        return KVCache(shape, self.dtype, self.device, window=c.sliding_window)

    def forward(
        self,
        batch: Batch,
        cache: KVCache,
        *,
        select: Tensor | None = None,
        num_layers: int | None = None,
        feature_layers: Sequence[int] = (),
    ) -> Output:
        """One pass over a packed batch, writing keys and values into `cache`.

        Args:
            select: packed indices whose logits are wanted (default: all T).
            num_layers: stop after this many layers (early exit); the norm and head follow.
            feature_layers: hidden states to return, concatenated to (T, F): layer i's
                input for i < num_layers, the last layer's output for i = num_layers.
        """
        depth = self.config.num_layers if num_layers is None else num_layers
        cos, sin = self.rope[batch.positions].unbind(1)  # (T, 1, D/2) each
        x = F.embedding(batch.tokens, self.embedding)  # (T, d)
        states = []
        for i in range(depth):
            if i in feature_layers:
                states.append(x)
            x = self.layers[i](x, batch, cache.keys[i], cache.values[i], cos, sin)
        if depth in feature_layers:
            states.append(x)
        features = torch.cat(states, dim=-1) if states else None
        if select is not None:
            x = x[select]
        if len(x) == 0:  # part of a prompt: only the cache was wanted
            return Output(x.new_empty(0, self.config.vocab_size), features)
        return Output(self.head(self.norm(x)), features)

    def pack(self) -> Model:
        """Repack every matrix for fast CPU decoding (see `Linear.pack`)."""
        for module in self.modules():
            if isinstance(module, Linear) and module.packed is None:
                module.pack(keep=module is self.head and self.config.tied_embeddings)
        return self


def random_model(
    config: ModelConfig, seed: int, *, scale: float = 1.0, dtype: torch.dtype = torch.float32
) -> Model:
    """A model with random weights; the global random state is not touched."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        model = Model(config).to(dtype)
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.dim() == 1:  # norms near one, biases near zero
                parameter.add_(0.1 * noise.to(dtype))
            else:
                parameter.copy_(noise * scale / parameter.shape[-1] ** 0.5)
    return model.requires_grad_(False)
