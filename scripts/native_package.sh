#!/usr/bin/env bash
# Builds the extension with a CMake option, beside a copy of the package: scripts/native_package.sh OPTION FOLDER.
# The package is FOLDER/package. Needs GCC, CMake, Ninja and nanobind.
set -euo pipefail
cd "$(dirname "$0")/.."
cmake -G Ninja -S . -B "$2/build" "-D$1=ON" -DPython_EXECUTABLE="$(command -v python)" >"$2/configure.log"
cmake --build "$2/build" --target _native
mkdir "$2/package"
cp -r src/tuili "$2/package/"
rm -f "$2"/package/tuili/backends/cpu/_native*.so
cp "$2"/build/_native*.so "$2/package/tuili/backends/cpu/"
