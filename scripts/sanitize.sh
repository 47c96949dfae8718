#!/usr/bin/env bash
# Builds the extension with AddressSanitizer and UndefinedBehaviorSanitizer beside a copy of the package and runs the
# native tests on it: scripts/sanitize.sh [pytest arguments]. Needs GCC, CMake, Ninja, nanobind and the test extra.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

scripts/native_package.sh TUILI_SANITIZE "$work"

# The interpreter is not instrumented, hence the preload; what it keeps until exit is no leak of ours.
if [ $# -eq 0 ]; then set -- tests/backends/cpu; fi
export PYTHONPATH="$work/package" PYTHONDONTWRITEBYTECODE=1
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libstdc++.so)" \
    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
    python -m pytest -p no:cacheprovider --timeout 1800 "$@"
