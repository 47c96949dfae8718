"""Routes of OpenAI's, vLLM's and llama-server's that clients know and that are not there, each saying what is. Data."""

from __future__ import annotations

from tuili.server.dialect import MissingRoute, Scope

_NO_RESPONSES = "ask /v1/chat/completions"
_NO_BATCHES = "`tuili generate` works through batch files"
_NO_EMBEDDINGS = "models that make embeddings are not run yet"
_NO_AUDIO = "models read and write text only"
_NO_ADAPTERS = "adapters come later"
_NATIVE = "that is llama-server's own form: ask /v1/completions"
_NO_SLOTS = "there are no slots: /v1/requests tells what runs"
_RENDER = "/tokenize tells a conversation's tokens"


def _all(method: str, scope: Scope, why: str, *paths: str) -> tuple[MissingRoute, ...]:
    return tuple((method, path, scope, why) for path in paths)


MISSING: tuple[MissingRoute, ...] = (
    *_all("POST", "infer", _NO_RESPONSES, "/v1/responses", "/responses", "/v1/chat/completions/batch"),
    *_all("GET", "infer", _NO_RESPONSES, "/v1/responses/{response_id}"),
    *_all("POST", "infer", _NO_EMBEDDINGS, "/v1/embeddings", "/v1/rerank", "/v1/reranking", "/v1/score"),
    *_all("POST", "infer", _NO_EMBEDDINGS, "/embedding", "/embeddings", "/rerank", "/reranking", "/score"),
    *_all("POST", "infer", _NO_EMBEDDINGS, "/classify", "/pooling", "/v2/embed", "/v2/rerank"),
    *_all("GET", "infer", _NO_BATCHES, "/v1/batches", "/v1/batches/{batch_id}", "/v1/files"),
    *_all("POST", "infer", _NO_BATCHES, "/v1/batches", "/v1/files"),
    *_all("POST", "infer", _NO_AUDIO, "/v1/audio/transcriptions", "/v1/audio/translations", "/v1/audio/speech"),
    *_all("POST", "infer", _NO_AUDIO, "/v1/images/generations"),
    *_all("POST", "infer", _NATIVE, "/completion", "/completions"),
    *_all("POST", "infer", "write the model's own tokens for filling in into a prompt", "/infill"),
    *_all("POST", "infer", _RENDER, "/apply-template", "/v1/completions/render", "/v1/chat/completions/render"),
    *_all("POST", "infer", _RENDER, "/v1/chat/completions/input_tokens", "/chat/completions/input_tokens"),
    *_all("POST", "infer", "typed decisions come later", "/v1/systemone", "/v1/decisions"),
    *_all("POST", "infer", "ask /v1/chat/completions or /v1/completions", "/invocations", "/inference/v1/generate"),
    *_all("GET", "infer", "/v1/models and /api/show tell of models", "/props", "/tokenizer_info"),
    *_all("GET", "manage", _NO_SLOTS, "/slots"),
    *_all("POST", "manage", _NO_SLOTS, "/slots/{slot}"),
    *_all("POST", "manage", _NO_ADAPTERS, "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/lora-adapters"),
    *_all("GET", "infer", _NO_ADAPTERS, "/lora-adapters"),
    *_all("POST", "manage", "ask /v1/models/load or /v1/models/unload", "/models/load", "/models/unload"),
)
