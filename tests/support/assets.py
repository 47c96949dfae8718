"""Fetches real models and vocabularies into a cache folder, once, each verified by sha256."""

from __future__ import annotations

import hashlib
import os
import tarfile
from pathlib import Path

import filelock
import platformdirs

LLAMA_CPP_PROJECT, LLAMA_CPP_VERSION = "llama-cpp-python", "0.3.36"
LLAMA_CPP_FILE = "llama_cpp_python-0.3.36.tar.gz"
LLAMA_CPP_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
LLAMA_CPP_MEMBERS = "llama_cpp_python-0.3.36/vendor/llama.cpp/models/"


class AssetUnavailableError(Exception):
    """Neither cached nor to be had from the package index."""


def cache_dir() -> Path:
    """TUILI_TEST_CACHE, else a folder of the user's cache."""
    folder = Path(os.environ.get("TUILI_TEST_CACHE") or platformdirs.user_cache_dir("tuili-tests", appauthor=False))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
