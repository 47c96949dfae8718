"""What an explanation holds: plain values, so that it can be printed, drawn or saved as JSON."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenFact:
    """A token of the prompt; special ones are control, which no text can spell."""

    id: int
    text: str
    is_special: bool


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token that could come next, with its probability under the model."""

    id: int
    text: str
    probability: float


@dataclass(frozen=True, slots=True)
class GeneratedToken:
    """A token that was chosen, the likeliest candidates at that place, and how long the choice took."""

    chosen: Candidate
    candidates: tuple[Candidate, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight of a layer: [out_features, in_features], or a vector's length."""

    name: str
    shape: tuple[int, ...]
    format: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers that are alike: `what` in one word, their numbers, what they do step by step, weights of one of them."""

    attention: str
    num_heads: int
    num_kv_heads: int
    layers: tuple[int, ...]
    steps: tuple[str, ...]
    matrices: tuple[Matrix, ...]
    kv_bytes_per_token: int
    window: int | None


@dataclass(frozen=True, slots=True)
class CacheFacts:
    """The KV cache: bytes each token adds, and how it grows with the text; points are (tokens, bytes).

    max_len is the longest text it is loaded for.
    """

    bytes_per_number: float
    block_size: int
    bytes_per_token: int
    bytes_after_prompt: int
    bytes_after_answer: int
    max_len: int
    bytes_at_max_len: int
    as_many_kv_heads: float  # how many times larger it were with a key and value head for every query head
    growth: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class StageTime:
    """Seconds of one stage of the way."""

    stage: str
    seconds: float
    note: str = ""


@dataclass(frozen=True, slots=True)
class LayerView:
    """After a layer: how large the hidden state is, how much the layer changed it, and what its best guess was then."""

    layer: int
    norm: float
    change: float  # length of what the layer added, as a share of norm
    guess: Candidate


@dataclass(frozen=True, slots=True)
class AttentionMap:
    """Who looks at whom in one layer: weights[query][key], the mean over heads, or one head's."""

    layer: int
    title: str
    weights: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class InsideFacts:
    """What the reference backend saw inside the layers, or why it did not look."""

    views: tuple[LayerView, ...] = ()
    maps: tuple[AttentionMap, ...] = ()
    seconds: float = 0.0
    skipped: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """The model in numbers."""

    name: str
    family: str
    num_parameters: int
    num_bytes: int
    formats: tuple[tuple[str, int], ...]  # name, bytes; the largest first
    num_layers: int
    hidden_size: int
    vocab_size: int
    max_position: int
    norm: str
    position: str
    is_head_tied: bool
    read_per_token: tuple[tuple[str, int], ...]  # bytes of weights that one decoded token needs: part, bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """One prompt's way through a model."""

    model: ModelFacts
    prompt: str
    rendered: str | None  # as the chat template wrote it; None: completed as it is
    tokens: tuple[TokenFact, ...]
    layers: tuple[LayerGroup, ...]
    cache: CacheFacts
    generated: tuple[GeneratedToken, ...]
    answer: str
    finish_reason: str
    inside: InsideFacts
    times: tuple[StageTime, ...]
    backend: str
