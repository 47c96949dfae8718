#!/usr/bin/env bash
# All checks and measurements on a machine with a GPU, in under nine minutes, without network or model files:
#   benchmarks/gpu/run.sh [FOLDER] [--smoke] [--only STAGE...] [--limit SECONDS]
# FOLDER, or else the variable OUT, or else gpu-results: at most eight files of results. It needs Python with numpy,
# torch, triton and transformers; nothing is installed or built. --smoke: tiny sizes on the CPU, to see that it runs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PYTHONPATH="$PWD/src:$PWD:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"
