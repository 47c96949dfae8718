"""What the catalogue recommends reaches those who name its models, and nobody else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuili import SamplingParams
from tuili.store.catalogue import CATALOGUE
from tuili.store.store import Store


@pytest.mark.parametrize("name", ["smollm2", "smollm2:135m"])
def test_a_catalogue_name_has_its_authors_values(tmp_path: Path, name: str) -> None:
    assert Store(tmp_path).recommended_sampling(name) == {"temperature": 0.2, "top_p": 0.9}


@pytest.mark.parametrize("name", ["org/smollm2", "./smollm2", "other", "-", "gemma3:270m"])
def test_other_names_have_none(tmp_path: Path, name: str) -> None:
    assert Store(tmp_path).recommended_sampling(name) == {}


def test_every_recommendation_is_valid() -> None:
    for entry in CATALOGUE:
        SamplingParams(**dict(entry.sampling))
