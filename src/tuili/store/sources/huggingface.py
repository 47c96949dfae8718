"""Models of a Hugging Face hub, used in place from its cache: a snapshot of safetensors, or one GGUF file.

`org/name` is the repository; the tag of `org/name:Q4_K_M` chooses among its GGUF files. Transport, cache,
HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are huggingface_hub's business. Code and pickles are never fetched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from tuili.errors import DownloadError, ModelNotFoundError, TuiliError, UnsupportedModelError
from tuili.store.durable import is_storage_error, sha256_of
from tuili.store.manifest import FileRecord, Manifest
from tuili.store.names import ModelName
from tuili.store.offered import OfferedFile, Traffic
from tuili.store.progress import ProgressCallback, PullProgress
from tuili.store.source import Fetched

DEFAULT_QUANTIZATION = "Q4_K_M"  # where a repository has many GGUF files and the name has no tag
_TIMEOUT_S = 30.0
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
_PART = re.compile(r"-\d{5}-of-(\d{5})(?=\.gguf$)", re.IGNORECASE)
_QUANTIZATION = re.compile(r"(?:^|[-_.])((?:I?Q\d\w*|TQ\d\w*|MXFP4\w*|BF16|F16|F32))\.gguf$", re.IGNORECASE)
_BESIDE_WEIGHTS = frozenset(
    (
        *("config.json", "generation_config.json", "model.safetensors.index.json"),
        *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json"),
        *("added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json"),
        *("LICENSE", "LICENSE.txt", "LICENSE.md", "README.md"),
    )
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """What a repository holds at one commit. `folder` is set where it comes from the cache, offline."""

    revision: str
    files: Mapping[str, FileRecord]
    license: str | None = None
    folder: Path | None = None


class HuggingFaceSource:
    """Offers every name with an organization."""

    name = "huggingface"

    def offers(self, name: ModelName) -> bool:
        """Whether the name has the form of a repository."""
        return name.organization is not None

    def fetch(
        self, name: ModelName, previous: Manifest | None, workspace: Path, progress: ProgressCallback
    ) -> Fetched | None:
        """Brings the chosen files into the hub's cache; `workspace` stays empty."""
        with _hub_errors(name):
            listing = _online_listing(name) or _cached_listing(name)
            if listing is None and previous is not None:
                return None
            if listing is None:
                raise DownloadError(f"{name.repository} is not in the Hugging Face cache and HF_HUB_OFFLINE is set")
            chosen = choose_files(listing.files, name)
            records = tuple(listing.files[file] for file in chosen)
            if previous is not None and (previous.revision, previous.files) == (listing.revision, records):
                return None
            folder = listing.folder or _download(name, listing, records, progress)
        return Fetched(
            files=records,
            folder=folder,
            revision=listing.revision,
            license=listing.license,
            quantization=_quantization(chosen),
        )

    @contextmanager
    def offered_files(self, name: ModelName, traffic: Traffic) -> Iterator[Sequence[OfferedFile]]:
        """The chosen files where the hub keeps them."""
        import httpx
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils._headers import build_hf_headers

        from tuili.store.range_file import RangeClient

        with _hub_errors(name):
            listing = _online_listing(name)
            if listing is None:
                raise DownloadError(f"{name.repository} is not stored and HF_HUB_OFFLINE is set")
            chosen = [listing.files[file] for file in choose_files(listing.files, name)]
            urls = [hf_hub_url(name.repository, file.name, revision=listing.revision) for file in chosen]
        with httpx.Client(follow_redirects=True, timeout=_TIMEOUT_S) as client:
            ranges = RangeClient(client, build_hf_headers(), traffic)
            yield [
                OfferedFile(name=file.name, num_bytes=file.num_bytes, open=partial(ranges.open, url, file.name))
                for file, url in zip(chosen, urls, strict=True)
            ]


def choose_files(names: Mapping[str, object], name: ModelName) -> list[str]:
    """The files to fetch: the tag's GGUF, else safetensors and what belongs to them, else the default GGUF.

    A GGUF in parts is all its parts. Raises ModelNotFoundError listing the tags there are, DownloadError for one that
    lacks a part, UnsupportedModelError for pickled models.
    """
    ggufs = sorted(file for file in names if file.lower().endswith(".gguf"))
    if name.tag is not None:
        return _gguf_of_tag(ggufs, name.tag, name)
    if any(_WEIGHTS.fullmatch(file) for file in names):
        if "config.json" not in names:
            raise UnsupportedModelError(f"{name.repository} has safetensors without a config.json")
        return sorted(file for file in names if file in _BESIDE_WEIGHTS or _WEIGHTS.fullmatch(file))
    if len({_whole_name(file) for file in ggufs}) == 1:
        return _all_parts(ggufs, name)
    if ggufs:
        return _gguf_of_tag(ggufs, DEFAULT_QUANTIZATION, name)
    raise UnsupportedModelError(
        f"{name.repository} has neither model.safetensors nor a .gguf file: weights in other formats are not fetched"
    )


def _gguf_of_tag(ggufs: list[str], tag: str, name: ModelName) -> list[str]:
    """The file, or the parts, whose quantization, or whose whole name, is the tag; case does not matter."""
    wanted = tag.lower()
    models = dict.fromkeys(map(_whole_name, ggufs))
    found = [whole for whole in models if wanted in (_tag_of(whole).lower(), PurePosixPath(whole).stem.lower())]
    if len(found) == 1:
        return _all_parts([file for file in ggufs if _whole_name(file) == found[0]], name)
    tags = ", ".join(f"{name.repository}:{_tag_of(whole)}" for whole in models) or "none with a tag"
    raise ModelNotFoundError(f"{name.repository} has {len(found)} GGUF files for {tag!r}; there are {tags}")


def _whole_name(file: str) -> str:
    """A GGUF file's name without the number of its part."""
    return _PART.sub("", file)


def _tag_of(file: str) -> str:
    whole = PurePosixPath(_whole_name(file))
    match = _QUANTIZATION.search(whole.name)
    return match[1] if match else whole.stem


def _all_parts(parts: list[str], name: ModelName) -> list[str]:
    """`parts` in order, once none is missing, or the whole where there is one. Raises DownloadError naming a part."""
    match = _PART.search(parts[0])
    if match is None or _whole_name(parts[0]) in parts:
        return [_whole_name(parts[0])]
    for number in range(1, int(match[1]) + 1):
        expected = f"{parts[0][: match.start()]}-{number:05}-of-{match[1]}{parts[0][match.end() :]}"
        if expected not in parts:
            raise DownloadError(f"{name.repository} lacks {expected}, a part of {PurePosixPath(parts[0]).name}")
    return parts


def _quantization(chosen: list[str]) -> str | None:
    return _tag_of(chosen[0]).upper() if chosen[0].lower().endswith(".gguf") else None


def _online_listing(name: ModelName) -> Listing | None:
    """What the hub says now; None in offline mode."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        info = HfApi().model_info(name.repository, files_metadata=True)
    except OfflineModeIsEnabled:
        return None
    files = {}
    for sibling in info.siblings or []:
        if ".." in PurePosixPath(sibling.rfilename).parts:
            raise DownloadError(f"{name.repository} lists a file outside itself: {sibling.rfilename!a:.100}")
        digest = None if sibling.lfs is None else sibling.lfs.sha256
        files[sibling.rfilename] = FileRecord(name=sibling.rfilename, num_bytes=sibling.size or 0, sha256=digest)
    license = None if info.card_data is None else info.card_data.get("license")
    return Listing(revision=str(info.sha), files=files, license=license if isinstance(license, str) else None)


def _cached_listing(name: ModelName) -> Listing | None:
    """What the cache holds of the repository: its main branch, else the commit used last."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return None
    revisions = [
        revision
        for repository in repositories
        if (repository.repo_type, repository.repo_id) == ("model", name.repository)
        for revision in repository.revisions
    ]
    if not revisions:
        return None
    best = max(revisions, key=lambda revision: ("main" in revision.refs, revision.last_modified))
    names = {str(file.file_path.relative_to(best.snapshot_path)): file for file in best.files}
    files = {file: FileRecord(name=file, num_bytes=cached.size_on_disk, sha256=None) for file, cached in names.items()}
    return Listing(revision=best.commit_hash, files=files, folder=best.snapshot_path)


def _download(name: ModelName, listing: Listing, records: tuple[FileRecord, ...], progress: ProgressCallback) -> Path:
    """Downloads and verifies each file; returns the snapshot's folder."""
    folder = None
    for record in records:
        path = _download_file(name, listing.revision, record, progress, force=False)
        if not _is_sound(path, record):
            path = _download_file(name, listing.revision, record, progress, force=True)
            if not _is_sound(path, record):
                raise DownloadError(
                    f"{name.repository}: {record.name} arrived damaged twice: its sha256 or size differs"
                )
        folder = path.parents[len(PurePosixPath(record.name).parts) - 1]
    assert folder is not None, "choose_files returns at least one"
    return folder


def _download_file(
    name: ModelName, revision: str, record: FileRecord, progress: ProgressCallback, *, force: bool
) -> Path:
    from huggingface_hub import hf_hub_download

    reporter = _reporter(record, progress)
    return Path(
        hf_hub_download(name.repository, record.name, revision=revision, force_download=force, tqdm_class=reporter)
    )


def _is_sound(path: Path, record: FileRecord) -> bool:
    return path.stat().st_size == record.num_bytes and record.sha256 in (None, sha256_of(path))


def _reporter(record: FileRecord, progress: ProgressCallback) -> Any:
    """A stand-in for tqdm that huggingface_hub can drive and that prints nothing itself."""
    from tqdm import tqdm

    class Reporter(tqdm):  # type: ignore[type-arg]
        def __init__(self, *_: object, initial: int = 0, **__: object) -> None:
            super().__init__(disable=True)
            self._done_bytes = initial
            self.update(0)

        def update(self, n: float | None = 1) -> None:
            self._done_bytes += int(n or 0)
            progress(PullProgress(record.name, self._done_bytes, record.num_bytes))

    return Reporter


@contextmanager
def _hub_errors(name: ModelName) -> Iterator[None]:
    """Every failure of the hub's client as one line that says what to do."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        yield
    except TuiliError:
        raise
    except GatedRepoError as error:
        raise DownloadError(
            f"{name.repository} is gated: accept its terms on its page, then set HF_TOKEN to a token of that account"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelNotFoundError(
            f"no model {name.repository!r} on the hub, or it is private: then set HF_TOKEN"
        ) from error
    except Exception as error:
        if isinstance(error, OSError) and is_storage_error(error):
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DownloadError(
            f"cannot download {name.repository}: {lines[0]:.200}; check network, proxy and HF_ENDPOINT, "
            "then run the same command again: it continues where it stopped"
        ) from error


SOURCE = HuggingFaceSource()
