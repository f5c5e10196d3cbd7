#!/usr/bin/env sh
# Set everything up in .venv, once, and start the page. Options go to gralora ui, for instance: sh run.sh --port 8000
set -e
cd "$(dirname "$0")"
if [ ! -x .venv/bin/gralora ]; then
    "${PYTHON:-python3}" -m venv .venv
    .venv/bin/pip install --quiet --disable-pip-version-check --editable .
fi
exec .venv/bin/gralora ui "$@"
