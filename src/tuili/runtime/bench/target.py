"""What a peer is opened with. Knows no peer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tuili.errors import InvalidRequestError

GGUF_MAGIC = b"GGUF"


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerFlags:
    """What a user says about the peer. `peer_model` is what it takes in the stead of our model."""

    peer_model: str | None = None
    peer_path: Path | None = None  # tools or interpreter of the peer
    url: str | None = None
    api_key: str | None = None

    def python(self, peer: str, package: str) -> Path:
        """The interpreter of a peer's environment. Raises InvalidRequestError where none is named."""
        if self.peer_path is None:
            raise InvalidRequestError(
                f"{peer} runs in an environment of its own: install {package} in one and name its interpreter "
                "with --peer-path",
                param="peer_path",
            )
        return self.peer_path / "bin" / "python" if self.peer_path.is_dir() else self.peer_path


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerTarget(PeerFlags):
    """One comparison. `model` is our weights file or directory."""

    model: Path
    num_threads: int
    max_num_seqs: int
    max_len: int
    vocab_size: int
    seed: int = 0

    def gguf(self, peer: str) -> Path:
        """The GGUF file for a peer that takes one. Raises InvalidRequestError where there is none."""
        path = self.model if self.peer_model is None else Path(self.peer_model)
        if path.is_file():
            with path.open("rb") as file:
                if file.read(len(GGUF_MAGIC)) == GGUF_MAGIC:
                    return path
        raise InvalidRequestError(
            f"{peer} takes a GGUF file, found {path.name}: name one with --peer-model", param="peer_model"
        )

    def directory(self, peer: str) -> Path:
        """The Hugging Face directory for a peer that takes one. Raises InvalidRequestError where there is none."""
        path = self.model if self.peer_model is None else Path(self.peer_model)
        if (path / "config.json").is_file():
            return path
        raise InvalidRequestError(
            f"{peer} takes a Hugging Face directory, found {path.name}: name one with --peer-model", param="peer_model"
        )
