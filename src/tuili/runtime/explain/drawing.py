"""Pictures of an explanation as inline SVG and HTML. Knows facts and words; not the page around them.

Colours are classes and variables of the page's style, so that they suit dark and light.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

from tuili.runtime.explain import words
from tuili.runtime.explain.facts import AttentionMap, Candidate, Explanation, LayerGroup

_HUES = 6  # CSS classes h0 ... h5
_CELL = 12  # of a heat map
_LABEL = 74


def pictures() -> Mapping[str, Callable[[Explanation], str]]:
    """By the names that sections use."""
    return {
        "model": _model,
        "tokens": _tokens,
        "attention": _attention,
        "lens": _lens,
        "cache": _cache,
        "candidates": _candidates,
        "times": _times,
    }


def _svg(width: float, height: float, body: str, label: str) -> str:
    box = f'viewBox="0 0 {width:g} {height:g}" style="max-width:{width:g}px"'
    return f'<svg {box} role="img" aria-label="{escape(label)}">{body}</svg>'


def _label(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(text)}</text>'


def _box(x: float, y: float, width: float, height: float, kind: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4" class="{kind}"/>'


def _tokens(e: Explanation) -> str:
    chips = (
        f'<span class="token {"control" if t.is_special else f"h{i % _HUES}"}" title="position {i}, id {t.id}">'
        f"{escape(words.shown(t.text))}<small>{t.id}</small></span>"
        for i, t in enumerate(e.tokens)
    )
    return f'<div class="strip">{"".join(chips)}</div>'


def _model(e: Explanation) -> str:
    """From the embedding up: one frame for each kind of layer, with its heads drawn, then the head of the model."""
    m, y, parts = e.model, 8.0, list[str]()

    def stage(text: str, kind: str) -> None:
        nonlocal y
        parts.append(_box(150, y, 240, 30, kind) + _label(270, y + 20, text, "middle"))
        y += 30
        parts.append(f'<path d="M270 {y:g}v14" class="flow"/>')
        y += 14

    stage(f"head: {m.vocab_size} scores", "h1")
    stage(f"{m.norm}", "h5")
    for group in reversed(e.layers):
        parts.append(_frame(group, y))
        y += 176
        parts.append(f'<path d="M270 {y - 14:g}v14" class="flow"/>')
    stage(f"embedding: [{len(e.tokens)}, {m.hidden_size}]", "h1")
    parts.append(_box(150, y, 240, 30, "quiet") + _label(270, y + 20, f"{len(e.tokens)} token ids", "middle"))
    return _svg(540, y + 40, "".join(parts), "the model, from token ids below to scores above")


def _frame(group: LayerGroup, y: float) -> str:
    """One kind of layer, 162 high: MLP over attention, and the residual stream around both."""
    parts = [_box(110, y, 320, 162, "frame")]
    parts.append(_label(118, y + 16, f"{len(group.layers)} x: {words.numbers(group.layers)}", "small"))
    parts.append(f'<path d="M270 {y + 6:g}v22m0 34v22m0 62v10" class="flow"/>')
    parts.append(_box(170, y + 28, 200, 34, "h2") + _label(270, y + 50, "norm, MLP", "middle"))
    parts.append(_box(130, y + 84, 280, 62, "h0"))
    window = "" if group.window is None else f", last {group.window} tokens"
    parts.append(_label(270, y + 102, f"norm, {group.attention}{window}", "middle"))
    parts.append(_heads(group, y + 110))
    for top, bottom in ((y + 22, y + 68), (y + 78, y + 152)):
        parts.append(f'<path d="M270 {bottom:g}H120V{top:g}H270" class="residual"/>')
        parts.append(f'<circle cx="270" cy="{top:g}" r="5" class="plus"/>')
    return "".join(parts)


def _heads(group: LayerGroup, y: float) -> str:
    """Query heads above, the key and value heads they share below, in the same colour."""
    width, per_kv = 260 / group.num_heads, group.num_heads // group.num_kv_heads
    parts = []
    for head in range(group.num_heads):
        hue = f"h{head // per_kv % _HUES} head"
        parts.append(_box(140 + head * width, y, width * 0.86, 12, hue))
    for head in range(group.num_kv_heads):
        parts.append(_box(140 + head * per_kv * width, y + 16, width * (per_kv - 0.14), 12, f"h{head % _HUES} head"))
    return "".join(parts)


def _attention(e: Explanation) -> str:
    texts = [words.shown(token.text) for token in e.tokens]
    figures = (
        f"<figure>{_heat(found, texts)}<figcaption>{escape(found.title)}</figcaption></figure>"
        for found in e.inside.maps
    )
    return f'<div class="grid">{"".join(figures)}</div>'


def _heat(found: AttentionMap, texts: Sequence[str]) -> str:
    """Rows look at columns; the future, above the diagonal, is masked."""
    size, parts = _LABEL + _CELL * len(texts) + 4, list[str]()
    for q, row in enumerate(found.weights):
        y = _LABEL + q * _CELL
        parts.append(_label(_LABEL - 3, y + _CELL - 3, texts[q][:10], "end tick"))
        x = _LABEL + q * _CELL + _CELL - 3
        turn = f"translate({x:g} {_LABEL - 3}) rotate(-90)"
        parts.append(f'<text transform="{turn}" class="tick">{escape(texts[q][:10])}</text>')
        for k, weight in enumerate(row[: q + 1]):
            place = f'x="{_LABEL + k * _CELL}" y="{y}" width="11" height="11"'
            parts.append(f'<rect {place} class="heat" style="fill-opacity:{max(weight**0.5, 0.03):.2f}"/>')
    return _svg(size, size, "".join(parts), f"attention weights, {found.title}")


def _bar(share: float, kind: str) -> str:
    return f'<span class="track"><span class="bar {kind}" style="width:{max(share, 0.004):.1%}"></span></span>'


def _lens(e: Explanation) -> str:
    rows = (
        f"<tr><td>{v.layer}</td><td class='guess'>{escape(words.shown(v.guess.text))}</td>"
        f"<td class='wide'>{_bar(v.guess.probability, 'h0')}</td><td>{words.percent(v.guess.probability)}</td></tr>"
        for v in e.inside.views
    )
    return f"<table class='bars'>{''.join(rows)}</table>" if e.inside.views else ""


def _candidates(e: Explanation) -> str:
    cards = (_card(i, t.chosen, t.candidates, words.seconds(t.seconds)) for i, t in enumerate(e.generated))
    return f'<div class="grid">{"".join(cards)}</div>'


def _card(number: int, chosen: Candidate, candidates: Sequence[Candidate], time: str) -> str:
    rows = (
        f"<tr class='{'chosen' if c.id == chosen.id else ''}'><td class='guess'>{escape(words.shown(c.text))}</td>"
        f"<td class='wide'>{_bar(c.probability, 'h0' if c.id == chosen.id else 'h4')}</td>"
        f"<td>{words.percent(c.probability)}</td></tr>"
        for c in candidates
    )
    return (
        f"<figure><table class='bars'>{''.join(rows)}</table><figcaption>token {number}, {time}</figcaption></figure>"
    )


def _cache(e: Explanation) -> str:
    """Bytes over tokens; the mark is where this text ended."""
    width, height, left, top = 520.0, 210.0, 70.0, 12.0
    points, here = e.cache.growth, len(e.tokens) + len(e.generated)
    longest, most = points[-1][0], max(points[-1][1], 1)

    def place(tokens: float, size: float) -> tuple[float, float]:
        return left + tokens / longest * (width - left - 14), top + (1 - size / most) * (height - top - 34)

    base = place(0, 0)[1]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
    held = e.cache.bytes_after_answer
    x, y = place(here, held)
    parts = [
        f'<polyline points="{path}" class="curve"/>',
        f'<path d="M{left} {top}V{base:g}H{width - 10}" class="axis"/>',
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" class="mark"/>',
        _label(
            left + 14, top + 14, f"this text: {here} tokens, {words.num_bytes(e.cache.bytes_after_answer)}", "small"
        ),
        _label(left - 6, top + 8, words.num_bytes(most), "end small"),
        _label(left - 6, base, "0", "end small"),
        _label(width - 12, base + 18, f"{longest} tokens", "end small"),
    ]
    return _svg(width, height, "".join(parts), "how the KV cache grows with the text")


def _times(e: Explanation) -> str:
    total = sum(time.seconds for time in e.times) or 1.0
    rows = (
        f"<tr><td>{escape(t.stage)}</td><td class='wide'>{_bar(t.seconds / total, f'h{i % _HUES}')}</td>"
        f"<td>{words.seconds(t.seconds)}</td></tr>"
        for i, t in enumerate(e.times)
    )
    steps = max((t.seconds for t in e.generated), default=1.0)
    columns = "".join(
        f'<span class="column" style="height:{max(t.seconds / steps, 0.02):.0%}" '
        f'title="token {i}: {words.seconds(t.seconds)}"></span>'
        for i, t in enumerate(e.generated)
    )
    caption = "<figcaption>each token; the first one waits for the prompt</figcaption>"
    return f"<table class='bars'>{''.join(rows)}</table><figure><div class='columns'>{columns}</div>{caption}</figure>"
