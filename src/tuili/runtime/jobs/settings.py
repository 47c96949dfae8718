"""The flags that decide what the answers of a job are, whoever takes them: a command, or the job that is kept on disk.

Records without slots, so that another record can be made of several.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """How the model is loaded, as far as its answers depend on it."""

    max_model_len: int | None = None
    kv_cache_dtype: str = "auto"
    quantize: str | None = None
    backend: str | None = None
    device: str | None = None
    dtype: str = "auto"


@dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """What is made of the rows. name is the pattern of file names, for one file an answer."""

    prompt: str | None = None
    system: str | None = None
    raw: bool = False
    think: bool | None = None
    id_column: str | None = None
    name: str | None = None
