"""The flags of loading that `run` and `generate` share, and the model they open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from tuili.cli.quantize_option import check_recipe
from tuili.cli.speculative_option import parse_speculative

if TYPE_CHECKING:
    from tuili.runtime.pipeline import Pipeline


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadingSettings:
    """Flags under their names on the command line. Commands add their own to them."""

    max_model_len: int | None = None
    num_threads: int = 0
    kv_cache_dtype: str = "auto"
    quantize: str | None = None
    backend: str | None = None
    speculative_config: str | None = None

    @classmethod
    def option_names(cls) -> tuple[str, ...]:
        return tuple(field.name for field in fields(cls))

    def check(self) -> None:
        """Raises InvalidRequestError for what can be told wrong without a model."""
        parse_speculative(self.speculative_config)
        check_recipe(self.quantize)

    @contextmanager
    def opened(self, model: str, max_num_seqs: int) -> Iterator[Pipeline]:
        """The model, loaded; closed in the end."""
        from tuili.runtime.loading import LoadOptions, open_model  # slow to import

        options = LoadOptions(
            backend=self.backend,
            num_threads=self.num_threads,
            kv_cache_dtype=self.kv_cache_dtype,
            quantization=self.quantize,
            max_model_len=self.max_model_len,
            max_num_seqs=max_num_seqs,
            speculative=parse_speculative(self.speculative_config),
        )
        with closing(open_model(model, options)) as pipeline:
            yield pipeline
