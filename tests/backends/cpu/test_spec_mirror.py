"""A field added to the spec must be read by the C++ runtime or refused by name: none may be ignored."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from tuili.models.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, QueryScaling, RopeSpec

SOURCE = Path(__file__).parents[3] / "csrc" / "bindings" / "bindings_spec.cpp"

# Refused by models.features unless neutral (tests/models, test_batches.py), or of no consequence for a step.
NOT_READ = {
    AttentionSpec: {"causal", "relative_bias"},
    MlpSpec: set(),
    LayerSpec: {"cross_attention"},
    RopeSpec: {"theta", "scaling"},  # native_model.py
    QueryScaling: set(),
    ModelSpec: {"family", "encoder", "kind", "alibi_scale"},  # the first for people, the last for native_model.py
}


@pytest.mark.parametrize("spec", NOT_READ, ids=lambda spec: spec.__name__)
def test_every_field_is_read_or_refused(spec: type) -> None:
    read = set(re.findall(r'(?:field<\w+(?:::\w+)?>|literal|\.attr)\((?:\w+, )?"(\w+)"', SOURCE.read_text()))
    names = {f.name for f in fields(spec)}
    assert names - read == NOT_READ[spec]
    assert not NOT_READ[spec] & read
