#!/usr/bin/env bash
# Train with N processes: bash scripts/dist_train.sh N OPT [extra arguments]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
launch train "$@"
