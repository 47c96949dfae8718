"""tuili: run, batch, serve, tune and measure open large language models on your own hardware."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "LLM": "tuili.runtime.api.llm",
    "AsyncLLM": "tuili.runtime.api.async_llm",
    "AsyncLLMEngine": "tuili.runtime.api.async_llm",
    "LLMEngine": "tuili.runtime.api.llm_engine",
    "EngineArgs": "tuili.runtime.api.engine_arguments",
    "AsyncEngineArgs": "tuili.runtime.api.engine_arguments",
    "SamplingParams": "tuili.types",
    "BeamSearchParams": "tuili.types",
    "RepetitionDetectionParams": "tuili.types",
    "RequestOutputKind": "tuili.types",
    "Logprob": "tuili.types",
    "TextPrompt": "tuili.runtime.api.prompts",
    "TokensPrompt": "tuili.runtime.api.prompts",
    "RequestOutput": "tuili.runtime.api.outputs",
    "CompletionOutput": "tuili.runtime.api.outputs",
    "AutoTokenizer": "tuili.runtime.api.auto_tokenizer",
    "TuiliError": "tuili.errors",
}
__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    """Imports public names on first use, so that `import tuili` costs milliseconds."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'tuili' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return __all__
