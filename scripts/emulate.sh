#!/usr/bin/env bash
# Runs the native tests with the avx512, avx512_bf16 and avx_vnni kernels emulated on a processor that has only AVX2:
# scripts/emulate.sh [pytest arguments]. Needs what scripts/sanitize.sh needs, and SIMDe (Debian: libsimde-dev).
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

scripts/native_package.sh TUILI_EMULATE "$work"

if [ $# -eq 0 ]; then set -- tests/backends/cpu; fi
export PYTHONPATH="$work/package" PYTHONDONTWRITEBYTECODE=1
python -m pytest -p no:cacheprovider --timeout 1800 "$@"
