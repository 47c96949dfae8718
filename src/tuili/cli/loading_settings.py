"""The flags of loading that `run` and `generate` share, and the model they open."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from tuili.cli.quantize_option import check_recipe
from tuili.cli.speculative_option import parse_speculative
from tuili.runtime.jobs.settings import ModelSettings

if TYPE_CHECKING:
    from tuili.runtime.loading.loading import LoadOptions
    from tuili.runtime.loading.pipeline import Pipeline


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadingSettings(ModelSettings):
    """Flags under their names on the command line. Commands add their own to them."""

    num_threads: int = 0
    speculative_config: str | None = None

    @classmethod
    def option_names(cls) -> tuple[str, ...]:
        return tuple(field.name for field in fields(cls))

    def check(self, max_num_seqs: int) -> None:
        """Raises InvalidRequestError for what can be told wrong without a model."""
        check_recipe(self.quantize)
        self._options(max_num_seqs)

    @contextmanager
    def opened(self, model: str, max_num_seqs: int) -> Iterator[Pipeline]:
        """The model, loaded; closed in the end."""
        from tuili.runtime.loading.loading import open_model  # slow to import

        with closing(open_model(model, self._options(max_num_seqs))) as pipeline:
            yield pipeline

    def _options(self, max_num_seqs: int) -> LoadOptions:
        with nullcontext() if self.backend == "reference" else _no_blas_threads():
            from tuili.runtime.loading.loading import LoadOptions  # slow to import

        return LoadOptions(
            backend=self.backend,
            device=self.device,
            dtype=self.dtype,
            owns_process=True,
            num_threads=self.num_threads,
            kv_cache_dtype=self.kv_cache_dtype,
            quantization=self.quantize,
            max_model_len=self.max_model_len,
            max_num_seqs=max_num_seqs,
            speculative=parse_speculative(self.speculative_config),
        )


@contextmanager
def _no_blas_threads() -> Iterator[None]:
    """NumPy imported within starts no threads for its products: only the reference backend has any to make."""
    name = "OPENBLAS_NUM_THREADS"
    given = os.environ.get(name)
    os.environ.setdefault(name, "1")
    try:
        yield
    finally:
        if given is None:
            del os.environ[name]
