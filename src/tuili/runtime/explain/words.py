"""The explanation in words: sections of sentences and tables. The one place where its prose lives.

Knows facts; neither terminals nor HTML.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tuili.runtime.explain.facts import Candidate, Explanation, LayerGroup

_BYTE_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


@dataclass(frozen=True, slots=True)
class Section:
    """One step of the way. picture names what a page may draw beside it."""

    title: str
    sentences: tuple[str, ...]
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = field(default=())
    picture: str | None = None


def sections(e: Explanation) -> tuple[Section, ...]:
    """The whole way, in order."""
    return (
        _model(e),
        _template(e),
        _tokens(e),
        _embedding(e),
        *(_layers(e, group) for group in e.layers),
        _attention(e),
        _lens(e),
        _cache(e),
        _choosing(e),
        _times(e),
    )


def num_bytes(count: float) -> str:
    """1536 -> "1.5 KiB"."""
    for size, unit in _BYTE_UNITS:
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def seconds(value: float) -> str:
    """0.0123 -> "12.3 ms"."""
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.2f} ms" if value >= 1e-3 else f"{value * 1e6:.0f} us"


def shown(text: str) -> str:
    """A token's text with its blanks made visible."""
    text = text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text) or "∅"


def percent(probability: float) -> str:
    return f"{probability:.1%}" if probability >= 0.001 else f"{probability:.0e}"


def numbers(values: tuple[int, ...]) -> str:
    """(0, 1, 2, 5) -> "0-2, 5"."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1][1:] = [value]
        else:
            runs.append([value])
    return ", ".join("-".join(map(str, run)) for run in runs)


def _model(e: Explanation) -> Section:
    m = e.model
    formats = ", ".join(f"{name} {num_bytes(size)}" for name, size in m.formats)
    return Section(
        "The model",
        (
            f"{m.name} is a decoder of the {m.family} family: {m.num_parameters / 1e6:.1f} million numbers "
            f"in {num_bytes(m.num_bytes)} ({formats}).",
            f"It reads and writes one of {m.vocab_size} tokens at a time, carries a vector of {m.hidden_size} numbers "
            f"through {m.num_layers} layers, and sees at most {m.max_position} tokens.",
            f"Norm: {m.norm}. Positions: {m.position}.",
        ),
        picture="model",
    )


def _template(e: Explanation) -> Section:
    if e.rendered is None:
        return Section("1. Template", ("The prompt is completed as it is: no chat template is used.",))
    return Section(
        "1. Template",
        (
            "A chat model has learned to answer after exactly the text its template makes of a conversation. "
            "This is what the model is given:",
            e.rendered,
        ),
        picture="template",
    )


def _tokens(e: Explanation) -> Section:
    num_special = sum(token.is_special for token in e.tokens)
    return Section(
        "2. Tokens",
        (
            f"The tokenizer cuts this text into {len(e.tokens)} pieces of its vocabulary and looks up their numbers. "
            f"Control tokens, which no text can spell: {num_special}.",
        ),
        ("position", "id", "text"),
        tuple((str(i), str(t.id), shown(t.text) + (" (control)" * t.is_special)) for i, t in enumerate(e.tokens)),
        picture="tokens",
    )


def _embedding(e: Explanation) -> Section:
    m, n = e.model, len(e.tokens)
    tied = " The same matrix, turned around, makes scores of the last vector (a tied head)." if m.is_head_tied else ""
    return Section(
        "3. Embedding",
        (
            f"Each id picks its row of the embedding matrix [{m.vocab_size}, {m.hidden_size}]: {n} ids become "
            f"a matrix [{n}, {m.hidden_size}], one vector per token.{tied}",
        ),
    )


def _layers(e: Explanation, group: LayerGroup) -> Section:
    count = len(group.layers)
    which = f"{count} layers alike ({numbers(group.layers)})" if count > 1 else f"layer {group.layers[0]}"
    window = "" if group.window is None else f", window {group.window}"
    total = sum(matrix.num_bytes for matrix in group.matrices)
    return Section(
        f"4. Layers {numbers(group.layers)}: {group.attention}{window}",
        (
            f"{which}, each {num_bytes(total)} of weights. To the vector x of each token, one after another:",
            *(f"{i}. {step}" for i, step in enumerate(group.steps, 1)),
            f"Each adds {num_bytes(group.kv_bytes_per_token)} to the KV cache for every token.",
        ),
        ("weight", "shape", "format", "size"),
        tuple((m.name, " x ".join(map(str, m.shape)), m.format, num_bytes(m.num_bytes)) for m in group.matrices),
        picture="layers",
    )


def _attention(e: Explanation) -> Section:
    if e.inside.skipped is not None:
        return Section("5. Attention, seen", (f"No picture of the attention weights: {e.inside.skipped}.",))
    rows = []
    for found in e.inside.maps:
        last = found.weights[-1]
        best = sorted(range(len(last)), key=lambda i: -last[i])[:3]
        rows.append((found.title, ", ".join(f"{shown(e.tokens[i].text)} (#{i}) {percent(last[i])}" for i in best)))
    return Section(
        "5. Attention, seen",
        (
            f"The reference backend (NumPy, float32) ran the prompt again in {seconds(e.inside.seconds)} and kept "
            "the weights. A row is a token that looks, a column one it looks at; rows sum to 1, the future is masked. "
            "Much rests on the first token: heads with nothing to find park their weight there.",
        ),
        ("where", "what the last token looks at most"),
        tuple(rows),
        picture="attention",
    )


def _lens(e: Explanation) -> Section:
    if not e.inside.views:
        return Section("6. Layer by layer", ("Not looked at, for the same reason.",))
    return Section(
        "6. Layer by layer",
        (
            "What the model would say if it stopped after a layer: the final norm and the head applied to the last "
            "token's vector there (the logit lens). Length is the vector's, change what the layer added to it.",
        ),
        ("after layer", "length", "change", "best guess", "probability"),
        tuple(
            (str(v.layer), f"{v.norm:.1f}", f"{v.change:.0%}", shown(v.guess.text), percent(v.guess.probability))
            for v in e.inside.views
        ),
        picture="lens",
    )


def _cache(e: Explanation) -> Section:
    c, n = e.cache, len(e.tokens)
    saved = (
        ""
        if c.as_many_kv_heads == 1
        else (
            f" With a key and a value head for every query head (MHA) it were {c.as_many_kv_heads:.3g} times as large."
        )
    )
    return Section(
        "7. KV cache",
        (
            f"Every token leaves its keys and values behind, {num_bytes(c.bytes_per_token)} over all layers "
            f"({c.bytes_per_number:.3g} bytes a number), so that later tokens need not compute them again.{saved}",
            f"The cache is paged: blocks of {c.block_size} tokens are taken as the text grows. {n} prompt tokens hold "
            f"{num_bytes(c.bytes_after_prompt)}, with the answer {num_bytes(c.bytes_after_answer)}; "
            f"the longest text it is loaded for, {c.max_len} tokens, would hold {num_bytes(c.bytes_at_max_len)}.",
        ),
        ("tokens", "KV cache"),
        tuple((str(tokens), num_bytes(size)) for tokens, size in c.growth[1 :: max(len(c.growth) // 8, 2)]),
        picture="cache",
    )


def _choosing(e: Explanation) -> Section:
    return Section(
        "8. Choosing tokens",
        (
            "The last vector becomes one score per vocabulary entry, softmax makes probabilities of them, and a token "
            "is chosen. It is appended, goes through all layers alone (the cache holds the rest), and so on.",
            f"Answer: {e.answer!r} ({e.finish_reason}).",
        ),
        ("#", "chosen", "probability", "time", "candidates"),
        tuple(
            (str(i), shown(t.chosen.text), percent(t.chosen.probability), seconds(t.seconds), _others(t.candidates))
            for i, t in enumerate(e.generated)
        ),
        picture="candidates",
    )


def _others(candidates: tuple[Candidate, ...]) -> str:
    return ", ".join(f"{shown(c.text)} {percent(c.probability)}" for c in candidates)


def _times(e: Explanation) -> Section:
    decode = [token.seconds for token in e.generated[1:]]
    rate = f"{len(decode) / sum(decode):.1f} tokens/s" if decode else "no second token"
    read = sum(size for _, size in e.model.read_per_token)
    parts = ", ".join(f"{part} {size / read:.0%}" for part, size in e.model.read_per_token)
    return Section(
        "9. Where time went",
        (
            f"On the {e.backend} backend, decoding ran at {rate}. For every token all weights that take part are read "
            f"once, {num_bytes(read)}: {parts}. That, not arithmetic, bounds decoding of a single text; prompts and "
            "batches share the reading.",
        ),
        ("stage", "time", ""),
        tuple((t.stage, seconds(t.seconds), t.note) for t in e.times),
        picture="times",
    )
