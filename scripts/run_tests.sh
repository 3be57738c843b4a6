#!/usr/bin/env bash
# The tests; arguments go to pytest: bash scripts/run_tests.sh -m slow tests/test_pipeline.py
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"

run() { "$PYTHON" -m pytest -q -m "not slow and not gpu" "$@"; }

if (($#)); then
    run "$@"
    exit
fi
# What loads onnxruntime, OpenVINO and NNCF runs in a process of its own, beside the others: one process that had run a
# thousand other tests before these was killed by a segmentation fault.
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
