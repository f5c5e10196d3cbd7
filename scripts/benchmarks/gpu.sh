#!/usr/bin/env bash
# What a GPU does with this package, in at most nine minutes, without network and without model files.
#
#   bash scripts/benchmarks/gpu.sh
#   PYTHON=python3.12 bash scripts/benchmarks/gpu.sh --output my-gpu
#   bash scripts/benchmarks/gpu.sh --only facts steps
#   bash scripts/benchmarks/gpu.sh --quick     # small sizes: whether everything runs
#
# Results are in gpu-benchmark/results.json and results.md, from the first measurement on.
set -euo pipefail
cd "$(dirname "$0")/../.."
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" scripts/benchmarks/gpu.py "$@"
