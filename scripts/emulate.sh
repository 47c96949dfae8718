#!/usr/bin/env bash
# Runs the native tests with the avx512 and avx_vnni kernels emulated on a processor that has only AVX2:
# scripts/emulate.sh [pytest arguments]. Needs what scripts/sanitize.sh needs, and SIMDe (Debian: libsimde-dev).
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cmake -G Ninja -S . -B "$work/build" -DTUILI_EMULATE=ON -DPython_EXECUTABLE="$(command -v python)" >"$work/configure.log"
cmake --build "$work/build" --target _native
mkdir "$work/package"
cp -r src/tuili "$work/package/"
rm -f "$work"/package/tuili/backends/cpu/_native*.so
cp "$work"/build/_native*.so "$work/package/tuili/backends/cpu/"

if [ $# -eq 0 ]; then set -- tests/backends/cpu; fi
export PYTHONPATH="$work/package" PYTHONDONTWRITEBYTECODE=1
python -m pytest -p no:cacheprovider --timeout 1800 "$@"
