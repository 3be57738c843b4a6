#!/usr/bin/env bash
# The tests; arguments go to pytest: bash scripts/run_tests.sh -m slow tests/test_pipeline.py
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"

run() { "$PYTHON" -m pytest -q -m "not slow and not gpu" "$@"; }

if (($#)); then
    run "$@"
    exit
fi
# A third of the time goes into networks run by other runtimes: beside the others, on a second core.
runtimes=(tests/test_export.py tests/test_upscale.py)
log=$(mktemp)
run "${runtimes[@]}" >"$log" 2>&1 &
beside=$!
trap 'kill "$beside" 2>/dev/null || true; rm -f "$log"' EXIT
failed=0
run "${runtimes[@]/#/--ignore=}" || failed=1
wait "$beside" || failed=1
cat "$log"
exit $failed
