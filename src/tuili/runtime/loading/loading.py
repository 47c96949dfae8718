"""From a name to a running pipeline: find or fetch the files, read them, choose a backend, size the cache."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tuili.backend import Backend, BackendOptions, WeightSource
from tuili.backends import choose_backend, load_backend, load_quantizer
from tuili.checks import (
    refusal,
)
from tuili.config import (
    GPU_MEMORY_UTILIZATION,
    EngineConfig,
    store_dir,
)
from tuili.errors import InvalidRequestError, ModelFileError, ModelNotFoundError, UnsupportedModelError
from tuili.machine import available_memory
from tuili.models.spec import ModelSpec
from tuili.runtime.front.modelfile_settings import (
    Preamble,
    check_modelfile,
    model_context,
    model_sampling,
    model_template,
)
from tuili.runtime.loading.fetching import find_model
from tuili.runtime.loading.load_options import LoadOptions as LoadOptions
from tuili.runtime.loading.load_options import is_automatic, resolved
from tuili.runtime.loading.memory import measured_room, size_cache, size_device_cache
from tuili.store.store import Store
from tuili.weights.checkpoint import Checkpoint, open_checkpoint
from tuili.weights.mapped_file import file_stamps
from tuili.weights.quantizing import quantized_weights
from tuili.weights.recipes import find_recipe
from tuili.weights.tensor_table import TensorTable

if TYPE_CHECKING:
    from tuili.runtime.front.front import Front
    from tuili.runtime.loading.pipeline import Pipeline
    from tuili.runtime.loading.running_engine import RunningEngine
    from tuili.text.tokenizer import Tokenizer

    Loaded = TypeVar("Loaded", Pipeline, RunningEngine)

DEFAULT_BATCHED_TOKENS = 512
_log = logging.getLogger(__name__)


def open_model(model: str | PathLike[str], options: LoadOptions | None = None) -> Pipeline:
    """Loads a model by name or path and starts its engine.

    Raises what find_model raises, ModelFileError, UnsupportedModelError, InsufficientMemoryError, and
    InvalidRequestError for options the model cannot meet.
    """
    given = options or LoadOptions()
    options = resolved(given)
    name = model if isinstance(model, str) else fspath(model) if isinstance(model, PathLike) else None
    if not isinstance(name, str) or not name:
        raise refusal("model", model, "a name or a path")
    path = find_model(name)
    start = time.monotonic()
    with _without_collection():
        pipeline = _unchanged(path, lambda: _load(name, path, options, start, _otherwise(given, options)))
        if options.owns_process:
            gc.freeze()  # what is there now stays: looking through it would hold up the first token
    return pipeline


def open_engine(path: Path, options: LoadOptions) -> RunningEngine:
    """Loads what runs of the model at `path`, without a tokenizer, and starts its engine.

    `options` name files by path alone: nothing is looked up or fetched. A draft model's vocabulary is not compared with
    the model's. Raises as open_model.
    """
    start = time.monotonic()
    given = replace(options, owns_process=True)
    options = resolved(given)
    with _without_collection():
        return _unchanged(path, lambda: _load_engine(path, options, start, _otherwise(given, options)))


def _otherwise(given: LoadOptions, options: LoadOptions) -> LoadOptions | None:
    """What to load with where torch, which `given` left to us to choose, refuses the model."""
    return replace(given, backend="cpu") if is_automatic(given) and options.backend == "torch" else None


def _unchanged(path: Path, load: Callable[[], Loaded]) -> Loaded:
    """What `load` gives, unless the files became others meanwhile: half of each would be no model.

    Raises ModelFileError then. Once loaded, nothing of the files is needed any more.
    """
    try:
        before = file_stamps(path)
        loaded = load()
        is_same = file_stamps(path) == before
    except FileNotFoundError:
        raise ModelFileError(f"{path.name}: removed while it was read") from None
    if not is_same:
        loaded.close()
        raise ModelFileError(f"{path.name}: changed on disk while it was read, load it again")
    return loaded


def _load_engine(path: Path, options: LoadOptions, start: float, otherwise: LoadOptions | None) -> RunningEngine:
    checkpoint, free_bytes = open_checkpoint(path), available_memory()
    speculative = options.speculative
    drafts = None if speculative is None or speculative.model is None else open_checkpoint(Path(speculative.model))
    backends, options = _load_backends(checkpoint, drafts, options, otherwise)
    return _start_engine(checkpoint, drafts, backends, options, free_bytes, start)


def _start_engine(
    checkpoint: Checkpoint,
    draft_checkpoint: Checkpoint | None,
    backends: tuple[Backend, Backend | None],
    options: LoadOptions,
    free_bytes: int,
    start: float,
) -> RunningEngine:
    from tuili.engine.drafts.draft_model import DraftBackend
    from tuili.engine.engine import Engine
    from tuili.engine.loop import EngineLoop
    from tuili.runtime.loading.running_engine import RunningEngine

    backend, draft_backend = backends
    config = _engine_config(checkpoint.spec, backends, options, free_bytes)
    draft = None
    if draft_checkpoint is not None and draft_backend is not None:
        draft = DraftBackend(draft_backend, min(config.max_model_len, draft_checkpoint.spec.max_position))
    engine = Engine(backend, config, draft=draft)
    return RunningEngine(
        engine=engine,
        loop=EngineLoop(engine),
        backend=backend,
        draft_backend=draft_backend,
        load_s=time.monotonic() - start,
    )


def _load(name: str, path: Path, options: LoadOptions, start: float, otherwise: LoadOptions | None) -> Pipeline:
    checkpoint = open_checkpoint(path)
    if options.max_model_len is None:
        modelfile = Store(store_dir()).modelfile(name)
        options = replace(options, max_model_len=model_context(modelfile, checkpoint.spec.max_position))
    draft_checkpoint = _draft_checkpoint(options)
    vocabulary = tokenizer_source(checkpoint, options)
    free_bytes = available_memory()
    with ThreadPoolExecutor(1) as executor:
        packing = executor.submit(_load_backends, checkpoint, draft_checkpoint, options, otherwise)
        # Packing needs the interpreter's lock now and then only: meanwhile the rest is imported and made.
        import tuili.runtime.loading.running_engine  # noqa: F401
        from tuili.runtime.front.text_parts import open_tokenizer
        from tuili.runtime.loading.pipeline import Pipeline

        front = open_front(name, checkpoint, vocabulary, options.chat_template)
        if draft_checkpoint is not None:
            check_vocabulary(checkpoint, front.tokenizer, draft_checkpoint, open_tokenizer(draft_checkpoint))
        backends, options = packing.result()
    running = _start_engine(checkpoint, draft_checkpoint, backends, options, free_bytes, start)
    return Pipeline(
        front=replace(front, max_model_len=running.engine.config.max_model_len),
        spec=checkpoint.spec,
        backend=running.backend,
        draft_backend=running.draft_backend,
        loop=running.loop,
        max_num_seqs=running.engine.config.max_num_seqs,
        load_s=time.monotonic() - start,
    )


def tokenizer_source(checkpoint: Checkpoint, options: LoadOptions) -> Checkpoint:
    """Where the tokenizer is. Raises InvalidRequestError when the options name other files and those do not do."""
    return checkpoint if options.tokenizer is None else _open_tokenizer_source(options.tokenizer)


def open_front(name: str, checkpoint: Checkpoint, vocabulary: Checkpoint, chat_template: str | None) -> Front:
    """The text side of a checkpoint, with all the context its model allows and the tokenizer of `vocabulary`.

    `name` may be a Modelfile's, whose settings it then has. Raises InvalidRequestError for a tokenizer, a template or
    a setting that does not do, and what reading the checkpoint's raises.
    """
    from tuili.runtime.front.front import Front
    from tuili.runtime.front.text_parts import eos_token_ids, open_chat_template, open_tokenizer, special_tokens

    spec = checkpoint.spec
    tokenizer = open_tokenizer(vocabulary)
    if len(tokenizer) > spec.vocab_size:
        raise InvalidRequestError(
            f"tokenizer has {len(tokenizer)} tokens, the model knows {spec.vocab_size}", param="tokenizer"
        )
    store = Store(store_dir())
    modelfile = store.modelfile(name)
    template = None if chat_template is not None else model_template(modelfile, special_tokens(tokenizer))
    template = template or open_chat_template(checkpoint, tokenizer, chat_template)
    check_modelfile(modelfile, limit=spec.max_position, has_template=template is not None)
    return Front(
        name=name,
        vocab_size=spec.vocab_size,
        tokenizer=tokenizer,
        eos_token_ids=eos_token_ids(checkpoint, tokenizer),
        chat_template=template,
        max_model_len=spec.max_position,
        default_sampling=model_sampling(name, modelfile, checkpoint.generation_config, store),
        preamble=Preamble.of(modelfile),
        num_keep=None if modelfile is None else modelfile.options.num_keep,
    )


def _open_tokenizer_source(name: str) -> Checkpoint:
    try:
        return open_checkpoint(find_model(name))
    except (InvalidRequestError, ModelNotFoundError, ModelFileError) as error:
        raise InvalidRequestError(f"tokenizer: {error}", param="tokenizer") from None


@contextmanager
def _without_collection() -> Iterator[None]:
    """A vocabulary becomes half a million objects, none of them garbage: a fifth of the time went into looking."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _draft_checkpoint(options: LoadOptions) -> Checkpoint | None:
    if options.speculative is None or options.speculative.model is None:
        return None
    return open_checkpoint(find_model(options.speculative.model))


def _load_backends(
    checkpoint: Checkpoint, draft_checkpoint: Checkpoint | None, options: LoadOptions, otherwise: LoadOptions | None
) -> tuple[tuple[Backend, Backend | None], LoadOptions]:
    """The model, the one that drafts for it as far as its positions reach, and the options they were loaded with."""
    try:
        return _load_pair(checkpoint, draft_checkpoint, options), options
    except UnsupportedModelError as error:
        if otherwise is None:
            raise
        _log.warning("the cpu backend computes, not the GPU: %s", error)
    options = resolved(replace(otherwise, max_model_len=options.max_model_len))
    return _load_pair(checkpoint, draft_checkpoint, options), options


def _load_pair(
    checkpoint: Checkpoint, draft_checkpoint: Checkpoint | None, options: LoadOptions
) -> tuple[Backend, Backend | None]:
    limit = checkpoint.spec.max_position
    wanted = options.max_model_len or limit
    if wanted > limit:
        raise InvalidRequestError(
            f"max_model_len must be in [1, {limit}] for this model, got {wanted}", param="max_model_len"
        )
    backend = _load_backend(checkpoint, wanted, options)
    if draft_checkpoint is None:
        return backend, None
    reach = min(wanted, draft_checkpoint.spec.max_position)
    alone = replace(options, tensor_parallel_size=1, pipeline_parallel_size=1)
    return backend, _load_backend(draft_checkpoint, reach, alone)


def check_vocabulary(checkpoint: Checkpoint, tokenizer: Tokenizer, draft: Checkpoint, drafts: Tokenizer) -> None:
    """A draft is made of token ids: they must mean the same to both models. Raises InvalidRequestError."""
    sizes = checkpoint.spec.vocab_size, draft.spec.vocab_size
    if sizes[0] != sizes[1] or not tokenizer.has_vocabulary_of(drafts):
        found = f"sizes are {sizes[0]} and {sizes[1]}" if sizes[0] != sizes[1] else "tokens differ"
        raise InvalidRequestError(
            f"speculative_config: model must have the vocabulary of the model it drafts for: {found}",
            param="speculative_config",
        )


def _load_backend(checkpoint: Checkpoint, max_model_len: int, options: LoadOptions) -> Backend:
    backend_options = BackendOptions(
        max_model_len=max_model_len,
        num_threads=options.num_threads,
        kv_cache_dtype=options.kv_cache_dtype,  # type: ignore[arg-type]  # checked where it was resolved
        device=options.device,
        dtype=options.dtype,
        deterministic=options.deterministic,
        enforce_eager=options.enforce_eager,
        gpu_memory_utilization=options.gpu_memory_utilization or GPU_MEMORY_UTILIZATION,
        gpu_layers=options.gpu_layers,
        cpu_offload_bytes=int(options.cpu_offload_gb * 2**30),
        tensor_parallel_size=options.tensor_parallel_size,
        pipeline_parallel_size=options.pipeline_parallel_size,
        source=WeightSource(str(checkpoint.path.absolute()), _recipe_name(checkpoint, options)),
    )
    weights = weights_to_run(checkpoint, options)
    return load_backend(_backend(options), checkpoint.spec, weights, backend_options)


def _backend(options: LoadOptions) -> str:
    return choose_backend(options.backend, options.device)


def weights_to_run(checkpoint: Checkpoint, options: LoadOptions) -> TensorTable:
    """The checkpoint's, each quantized when it is asked for where the options want that."""
    name = _recipe_name(checkpoint, options)
    if name is None:
        return checkpoint.weights
    recipe = find_recipe(name)
    quantize = load_quantizer(_backend(options), options.num_threads)
    return quantized_weights(checkpoint.weights, checkpoint.spec, recipe, quantize)


def _batched_tokens(backends: Sequence[Backend | None]) -> int:
    """Tokens of a step where nobody says: those that the model's backend is best with, if it knows."""
    return getattr(backends[0], "batched_tokens", None) or DEFAULT_BATCHED_TOKENS


def _recipe_name(checkpoint: Checkpoint, options: LoadOptions) -> str | None:
    is_as_stored = options.quantization == "gguf" and checkpoint.source == "gguf"
    return None if is_as_stored else options.quantization


def _engine_config(
    spec: ModelSpec, backends: Sequence[Backend | None], options: LoadOptions, free_bytes: int
) -> EngineConfig:
    """Limits from the options where given, else what the model allows and the memory holds, with all caches in it."""
    config = EngineConfig(
        max_model_len=options.max_model_len or spec.max_position,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens or max(_batched_tokens(backends), options.max_num_seqs),
        block_size=options.block_size,
        kv_cache_memory_bytes=options.kv_cache_memory_bytes,
        kv_cache_dtype=options.kv_cache_dtype,  # type: ignore[arg-type]
        enable_prefix_caching=options.enable_prefix_caching,
        max_slowdown=options.max_slowdown,
        speculative=options.speculative,
        swap_bytes=int(options.swap_space * 2**30),
    )
    groups = [group for backend in backends if backend for group in backend.cache_groups(options.block_size)]
    rooms = [measured_room(backend, config, options.gpu_memory_utilization) for backend in backends if backend]
    may_shorten = options.max_model_len is None
    if found := [room for room in rooms if room is not None]:
        return size_device_cache(groups, config, min(found, key=lambda room: room.cache_bytes), may_shorten=may_shorten)
    if config.kv_cache_memory_bytes is not None:
        return config
    return size_cache(groups, config, free_bytes, may_shorten=may_shorten)
