#!/usr/bin/env bash
# Test with N processes: bash scripts/dist_test.sh N OPT [extra arguments]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
launch test "$@"
