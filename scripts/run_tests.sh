#!/usr/bin/env bash
# The tests; arguments go to pytest: bash scripts/run_tests.sh -m slow tests/test_pipeline.py
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
exec "$PYTHON" -m pytest -q -m "not slow and not gpu" "$@"
