"""`tuili explain`: its facts are the model's, its words and pictures say them, and the page needs nothing else."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from support.random_models import decoder, layer, random_weights
from tuili import LLM, SamplingParams
from tuili.backend import CacheGroup
from tuili.errors import InvalidRequestError
from tuili.models.shapes import tensor_shapes
from tuili.models.spec import MlpSpec, ModelSpec
from tuili.runtime.explain import words
from tuili.runtime.explain.facts import Explanation, InsideFacts, TokenFact
from tuili.runtime.explain.gather import ExplainOptions, _request, explain
from tuili.runtime.explain.inside import look_inside
from tuili.runtime.explain.model_facts import cache_facts, describe_as_run, layer_groups, model_facts
from tuili.runtime.explain.page import render_page
from tuili.runtime.explain.text import render_text
from tuili.runtime.loading.loading import LoadOptions
from tuili.weights.checkpoint import Checkpoint
from tuili.weights.quantizing import quantize_tensor, quantized_weights
from tuili.weights.recipes import find_recipe
from tuili.weights.tensor_table import TensorTable

PROMPT = "What is 2 + 2?"
LOAD = LoadOptions(max_model_len=512)
UNGATED = MlpSpec(intermediate_size=64, activation="relu", gated=False)
SPECS = {
    "plain": decoder(),
    "windowed": decoder(layer(sliding_window=4), layer()),
    "multi-query": decoder(layer(num_kv_heads=1), layer(num_kv_heads=4)),
    "post": decoder(layer(layer_changes={"norms": "post"}), final_norm=False),
    "sandwich": decoder(layer(qk_norm="head", layer_changes={"norms": "sandwich"})),
    "parallel": decoder(layer(layer_changes={"parallel": True}), norm="layer", norm_bias=True),
    "ungated": decoder(layer(UNGATED, rope=None), position="learned"),
    "alibi": decoder(layer(rope=None, num_kv_heads=4), position="alibi", embedding_norm=True),
}


@pytest.fixture(scope="module")
def explained(smollm2_gguf: Path) -> Explanation:
    return explain(str(smollm2_gguf), PROMPT, ExplainOptions(max_tokens=5, top=3, load=LOAD))


def _checkpoint(spec: ModelSpec) -> Checkpoint:
    return Checkpoint(
        path=Path("m"),
        source="gguf",
        spec=spec,
        weights=random_weights(spec),
        config={},
        generation_config={},
        bos_token_ids=(),
        eos_token_ids=(),
        num_bytes=1000,
    )


def test_the_answer_and_its_candidates_are_the_engines(explained: Explanation, llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=5, logprobs=3)
    (output,) = llm.chat([{"role": "user", "content": PROMPT}], params, use_tqdm=False)
    assert explained.answer == output.outputs[0].text
    assert [t.id for t in explained.tokens] == output.prompt_token_ids
    assert [t.chosen.id for t in explained.generated] == output.outputs[0].token_ids
    assert explained.rendered == output.prompt
    for token in explained.generated:
        assert token.chosen == token.candidates[0]
        assert len(token.candidates) == 3
        assert sum(c.probability for c in token.candidates) <= 1.0
        assert token.seconds > 0


def test_sizes_are_those_of_the_file(explained: Explanation) -> None:
    model, (group,) = explained.model, explained.layers
    assert (model.num_layers, model.hidden_size, model.vocab_size) == (30, 576, 49152)
    assert model.num_parameters == 134_515_008
    assert sum(size for _, size in model.formats) == model.num_bytes
    assert (group.attention, group.num_heads, group.num_kv_heads, group.layers) == ("GQA", 9, 3, tuple(range(30)))
    shapes = {m.name: m.shape for m in group.matrices}
    assert (shapes["q_proj.weight"], shapes["k_proj.weight"]) == ((576, 576), (192, 576))
    assert explained.cache.bytes_per_token == 30 * 2 * 3 * 64 * 2  # layers, keys and values, heads, numbers, bfloat16
    assert group.kv_bytes_per_token * 30 == explained.cache.bytes_per_token
    assert explained.cache.as_many_kv_heads == 3.0
    parts = dict(model.read_per_token)
    assert parts["MLP"] == 30 * sum(
        m.num_bytes for m in group.matrices if m.name.split("_")[0] in ("gate", "up", "down")
    )
    assert [time.stage for time in explained.times] == [
        "load",
        "template",
        "tokenize",
        "prefill",
        "decode",
        "detokenize",
    ]
    assert all(time.seconds > 0 for time in explained.times)


def test_inside_agrees_with_the_engine(explained: Explanation) -> None:
    inside, count = explained.inside, len(explained.tokens)
    assert len(inside.views) == 30
    last, first_token = inside.views[-1].guess, explained.generated[0]
    beside = {c.id: c.probability for c in first_token.candidates}
    assert beside[last.id] == pytest.approx(last.probability, abs=0.05)
    assert [found.layer for found in inside.maps[:3]] == [0, 15, 29]
    for found in inside.maps:
        assert len(found.weights) == count
        for i, row in enumerate(found.weights):
            assert sum(row) == pytest.approx(1.0, abs=2e-3)
            assert not any(row[i + 1 :])


def test_json_holds_everything(explained: Explanation) -> None:
    value = json.loads(json.dumps(asdict(explained)))
    assert value["generated"][0]["chosen"]["id"] == explained.generated[0].chosen.id
    assert value["inside"]["maps"][0]["weights"][0][0] == 1.0


def test_words_tell_the_way_in_order(explained: Explanation) -> None:
    text = render_text(explained)
    titles = [section.title for section in words.sections(explained)]
    assert [text.index(title) for title in titles] == sorted(text.index(title) for title in titles)
    assert "22.5 KiB over all layers (2 bytes a number)" in " ".join(text.split())
    assert "9 heads" in text
    assert all(len(line) <= 110 for line in text.splitlines())


class _Page(HTMLParser):
    """Whatever is opened is closed, and what is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def _read(page: str) -> _Page:
    reader = _Page()
    reader.feed(page)
    assert reader.open == []
    return reader


def test_the_page_is_whole_and_fetches_nothing(explained: Explanation) -> None:
    page = render_page(explained)
    found = _read(page)
    assert {"svg", "figure", "table", "details"} <= found.tags
    assert not {"script", "link", "img", "iframe"} & found.tags
    assert not {name for name, _ in found.attributes} & {"src", "href", "xlink:href"}
    assert "http" not in page
    assert "url(" not in page
    assert "@import" not in page
    count = len(explained.tokens)
    assert len(re.findall('class="heat"', page)) == len(explained.inside.maps) * count * (count + 1) // 2
    assert "prefers-color-scheme:dark" in page
    assert 'name="viewport"' in page


def test_what_a_text_holds_is_shown_as_text(explained: Explanation) -> None:
    evil = "<script>alert(1)</script>&'\""
    hostile = replace(
        explained,
        prompt=evil,
        rendered=evil,
        answer=evil,
        model=replace(explained.model, name=evil, family=evil),
        tokens=tuple(TokenFact(t.id, evil, t.is_special) for t in explained.tokens),
    )
    found = _read(render_page(hostile))
    assert "script" not in found.tags
    assert evil in found.text


@pytest.mark.parametrize("name", SPECS)
def test_any_decoder_is_looked_into_and_described(name: str) -> None:
    checkpoint = _checkpoint(SPECS[name])
    spec = checkpoint.spec
    inside = look_inside(checkpoint, [5, 3, 99, 7, 20, 11], str)
    assert inside.skipped is None
    assert len(inside.views) == spec.num_layers
    for group in layer_groups(checkpoint, 2.0):
        steps = " ".join(group.steps)
        mixer = spec.layers[group.layers[0]].mixer
        assert ("RoPE" in steps) == (getattr(mixer, "rope", None) is not None)
        assert ("ALiBi" in steps) == (spec.position == "alibi")
        assert ("same time" in steps) == spec.layers[group.layers[0]].parallel
        assert len(group.matrices) == sum(n.startswith(f"layers.{group.layers[0]}.") for n in checkpoint.weights)
    assert sum(len(group.layers) for group in layer_groups(checkpoint, 2.0)) == spec.num_layers
    kinds = {group.attention for group in layer_groups(checkpoint, 2.0)}
    assert kinds == {"multi-query": {"MQA", "MHA"}, "alibi": {"MHA"}}.get(name, {"GQA"})


@pytest.mark.parametrize("name", ["plain", "multi-query"])
def test_facts_of_a_recipe_are_those_of_its_weights(name: str) -> None:
    spec = replace(SPECS[name], tie_word_embeddings=True)
    checkpoint = _checkpoint(spec)
    weights = TensorTable({n: partial(checkpoint.weights.__getitem__, n) for n in tensor_shapes(spec)})
    checkpoint = replace(checkpoint, weights=weights)
    real = quantized_weights(weights, spec, find_recipe("q4_0"), quantize_tensor)
    described = describe_as_run(checkpoint, "q4_0")
    assert model_facts("m", described) == model_facts("m", replace(checkpoint, weights=real))
    assert model_facts("m", described) != model_facts("m", checkpoint)
    assert describe_as_run(checkpoint, None) is checkpoint


def test_a_layer_that_adds_nothing_changes_nothing() -> None:
    checkpoint = _checkpoint(SPECS["plain"])
    weights = dict(checkpoint.weights)
    for name in ("layers.0.o_proj.weight", "layers.0.down_proj.weight"):
        weights[name] = replace(weights[name], data=np.zeros_like(weights[name].data))
    silent = replace(checkpoint, weights=weights)  # type: ignore[arg-type]
    first, second, *_ = look_inside(silent, [5, 3, 99], str).views
    assert first.change == 0.0
    assert second.change > 0.0


def test_a_long_prompt_and_a_large_model_are_not_drawn() -> None:
    checkpoint = _checkpoint(SPECS["plain"])
    assert look_inside(checkpoint, [1] * 65, str).skipped == "the prompt has 65 tokens, at most 64 can be drawn"
    large = replace(checkpoint, num_bytes=3 << 30)
    assert "3.0 GiB of weights" in str(look_inside(large, [1, 2], str).skipped)


def test_the_cache_grows_by_blocks_and_windows_bound_it() -> None:
    full = CacheGroup(kind="full", block_bytes=1600, block_size=16)
    window = CacheGroup(kind="window", block_bytes=160, block_size=16, window=32)
    facts = cache_facts(SPECS["windowed"], (full, window), 10, 17, 4096)
    assert facts.bytes_per_token == 110
    assert (facts.bytes_after_prompt, facts.bytes_after_answer) == (1760, 3520)
    assert facts.bytes_at_max_len == 256 * 1600 + 3 * 160
    growth = dict(facts.growth)
    assert (growth[0], growth[1], growth[16], growth[17]) == (0, 1760, 1760, 3520)
    sizes = [size for _, size in facts.growth]
    assert sizes == sorted(sizes)
    short = cache_facts(SPECS["windowed"], (full, window), 1, 2, 3).growth
    assert short[-1] == (3, 1760)


@pytest.mark.parametrize(
    ("value", "text"),
    [((0, 1, 2, 5), "0-2, 5"), ((4,), "4"), ((1, 3), "1, 3"), ((1, 2), "1-2")],
)
def test_numbers_are_told_in_runs(value: tuple[int, ...], text: str) -> None:
    assert words.numbers(value) == text


def test_blanks_and_controls_are_made_visible() -> None:
    assert words.shown(" a\n\x00") == "␣a⏎\\x00"
    assert words.shown("") == "∅"
    assert [words.seconds(s) for s in (2.0, 0.0123, 5e-6)] == ["2.00 s", "12.30 ms", "5 us"]
    assert [words.percent(p) for p in (0.5, 0.00001)] == ["50.0%", "1e-05"]


def test_without_a_look_inside_the_page_is_still_whole(explained: Explanation) -> None:
    bare = replace(explained, inside=InsideFacts(skipped="it was not asked for"), rendered=None)
    assert "it was not asked for" in render_text(bare)
    assert 'class="heat"' not in render_page(bare)
    _read(render_page(bare))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_tokens": 0}, r"max_tokens must be an integer in \[1, 256\]"), ({"top": 21}, r"top must be .*\[1, 20\]")],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        ExplainOptions(**options)


def test_a_base_model_completes_the_prompt(gemma3_gguf: Path) -> None:
    found = explain(str(gemma3_gguf), "Paris is the capital of", ExplainOptions(max_tokens=2, inside=False, load=LOAD))
    assert found.rendered is None
    assert found.answer.startswith(" France")
    assert [group.window for group in found.layers] == [512, None]
    assert {group.attention for group in found.layers} == {"MQA"}
    _read(render_page(found))


def test_a_system_text_needs_a_template() -> None:
    base: Any = SimpleNamespace(has_chat_template=False)
    with pytest.raises(InvalidRequestError, match="system needs a chat template"):
        _request(base, "x", ExplainOptions(system="y"))
