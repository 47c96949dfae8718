"""What a transformer *is*, as data: numbers, literals and tuples. No arrays, no I/O, no callables.

A backend reads a ModelSpec and never asks which family it came from. Weights arrive under
canonical names in canonical layout: half-split RoPE, norm gains with +1 folded in, fused
matrices split. Members no backend runs yet have their place here all the same, so that
running them later moves nothing; `tuili.backends` refuses them by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NormKind = Literal["rms", "layer"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"]
RopeScalingKind = Literal["linear", "dynamic", "yarn", "llama3", "longrope"]
PositionKind = Literal["rope", "learned", "alibi", "none"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeScaling:
    """How a rotary embedding was stretched. Each kind reads only its own fields (see rope.py)."""

    kind: RopeScalingKind
    factor: float = 1.0
    original_max_position: int = 0
    attention_factor: float | None = None
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    truncate: bool = True
    short_factor: tuple[float, ...] = ()  # longrope
    long_factor: tuple[float, ...] = ()
    frequency_divisors: tuple[float, ...] = ()  # given outright, as GGUF's rope_freqs does


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeSpec:
    """Rotary position embedding over the first `dim` dimensions of a head (less than all: partial)."""

    dim: int
    theta: float = 10_000.0
    scaling: RopeScaling | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RelativeBiasSpec:
    """T5's bucketed relative position bias, added to the scores."""

    num_buckets: int
    max_distance: int


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryScaling:
    """Queries grow with their position: times 1 + beta * ln(1 + floor(position / original_max_position))."""

    beta: float
    original_max_position: int


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionSpec:
    """Softmax attention: MHA, GQA or MQA by `num_kv_heads`.

    qk_norm: head = every head with the same gains; each_head = every head with its own; full = all heads as one row.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    rope: RopeSpec | None = None
    q_bias: bool = False
    k_bias: bool = False
    v_bias: bool = False
    out_bias: bool = False
    qk_norm: Literal["none", "head", "each_head", "full"] = "none"
    query_scaling: QueryScaling | None = None
    sliding_window: int | None = None
    logit_softcap: float | None = None
    sinks: bool = False
    causal: bool = True
    relative_bias: RelativeBiasSpec | None = None

    @property
    def value_head_dim(self) -> int:
        return self.head_dim


@dataclass(frozen=True, kw_only=True, slots=True)
class MlaSpec:
    """Multi-head latent attention (DeepSeek-V2): one latent per token is cached for all heads."""

    num_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    nope_head_dim: int
    rope_head_dim: int
    value_head_dim: int
    scale: float
    rope: RopeSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class DeltaNetSpec:
    """Gated delta net (Qwen3-Next): a recurrent state instead of a growing cache."""

    num_key_heads: int
    num_value_heads: int
    key_head_dim: int
    value_head_dim: int
    conv_kernel: int


@dataclass(frozen=True, kw_only=True, slots=True)
class MlpSpec:
    """`down(act(gate(x)) * up(x))`, or `down(act(up(x)))` when not gated."""

    intermediate_size: int
    activation: Activation = "silu"
    gated: bool = True
    bias: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class MoeSpec:
    """Mixture of experts: each token goes to `num_experts_per_tok` of `num_experts` MLPs."""

    num_experts: int
    num_experts_per_tok: int
    expert: MlpSpec
    shared_expert: MlpSpec | None = None
    router: Literal["softmax_then_topk", "topk_then_softmax", "sigmoid"] = "softmax_then_topk"
    norm_topk_prob: bool = False
    routed_scale: float = 1.0


Mixer = AttentionSpec | MlaSpec | DeltaNetSpec
FeedForward = MlpSpec | MoeSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerSpec:
    """One transformer layer.

    norms: pre  = x + mixer(norm(x));  post = norm(x + mixer(x)) as OPT-350m and BERT do;
           sandwich = x + norm(mixer(norm(x))) as Gemma 3;  output = x + norm(mixer(x)) as OLMo 2.
    parallel: x + mixer(norm(x)) + mlp(norm(x)), the norm being the same one, or each with its own (parallel_norms = 2).
    """

    mixer: Mixer
    mlp: FeedForward
    norms: Literal["pre", "post", "sandwich", "output"] = "pre"
    parallel: bool = False
    parallel_norms: Literal[1, 2] = 1
    residual_scale: float = 1.0
    cross_attention: AttentionSpec | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderSpec:
    """The encoder of an encoder-decoder model (T5)."""

    layers: tuple[LayerSpec, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """A whole model. `family` is for people and logs; backends never branch on it."""

    family: str
    vocab_size: int
    hidden_size: int
    max_position: int
    layers: tuple[LayerSpec, ...]
    norm: NormKind = "rms"
    norm_eps: float = 1e-6
    norm_bias: bool = False
    final_norm: bool = True
    position: PositionKind = "rope"
    position_offset: int = 0  # added to learned positions (OPT: 2)
    alibi_scale: float = 1.0  # times ALiBi's slopes (Falcon: head_dim ** -0.5)
    embedding_size: int | None = None  # narrower than hidden_size and projected (OPT-350m)
    embedding_scale: float = 1.0
    embedding_norm: bool = False
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    lm_head_bias: bool = False
    tie_word_embeddings: bool = False
    encoder: EncoderSpec | None = None
    kind: Literal["decoder", "encoder", "encoder_decoder"] = "decoder"

    @property
    def num_layers(self) -> int:
        return len(self.layers)
