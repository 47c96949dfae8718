"""From a name to a running pipeline: find or fetch the files, read them, choose a backend, size the cache."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuili.backend import Backend, BackendOptions
from tuili.backends import load_backend
from tuili.config import EngineConfig, store_dir
from tuili.engine.engine import Engine
from tuili.engine.loop import EngineLoop
from tuili.errors import InvalidRequestError
from tuili.runtime.memory import CacheDemand, available_bytes, fitting_model_len, kv_cache_bytes
from tuili.runtime.pipeline import Pipeline
from tuili.runtime.sampling_defaults import sampling_defaults
from tuili.store.store import Store
from tuili.text.chat_template import ChatTemplate
from tuili.text.tokenizer import Tokenizer
from tuili.types import SamplingParams
from tuili.weights.checkpoint import Checkpoint, open_checkpoint


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadOptions:
    """How to load. None lets the model and the machine decide."""

    backend: str | None = None
    num_threads: int = 0
    max_model_len: int | None = None
    max_num_seqs: int = 32
    max_num_batched_tokens: int | None = None
    block_size: int = 64
    kv_cache_bytes: int | None = None
    enable_prefix_caching: bool = True
    chat_template: str | None = None
    tokenizer: str | None = None
    revision: str | None = None
