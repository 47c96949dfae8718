"""tuili: run, batch, serve, tune and measure open large language models on your own hardware."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "LLM": "tuili.runtime.llm",
    "AsyncLLM": "tuili.runtime.async_llm",
    "AsyncLLMEngine": "tuili.runtime.async_llm",
    "LLMEngine": "tuili.runtime.llm_engine",
    "EngineArgs": "tuili.runtime.engine_arguments",
    "AsyncEngineArgs": "tuili.runtime.engine_arguments",
    "SamplingParams": "tuili.types",
    "BeamSearchParams": "tuili.types",
    "RepetitionDetectionParams": "tuili.types",
    "RequestOutputKind": "tuili.types",
    "Logprob": "tuili.types",
    "TextPrompt": "tuili.runtime.prompts",
    "TokensPrompt": "tuili.runtime.prompts",
    "RequestOutput": "tuili.runtime.outputs",
    "CompletionOutput": "tuili.runtime.outputs",
    "AutoTokenizer": "tuili.runtime.auto_tokenizer",
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
