#!/usr/bin/env bash
# The tests; arguments go to pytest: bash scripts/run_tests.sh -m slow tests/test_pipeline.py
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"

run() { "$PYTHON" -m pytest -q -m "not slow and not gpu" "$@"; }

if (($#)); then
    run "$@"
    exit
fi
# What loads onnxruntime, OpenVINO and NNCF runs in a process of its own: one that had run a thousand other tests before
# was killed by a segmentation fault within these libraries' tests.
runtimes=(tests/test_export.py tests/test_upscale.py)
failed=0
run "${runtimes[@]/#/--ignore=}" || failed=1
run "${runtimes[@]}" || failed=1
exit $failed
