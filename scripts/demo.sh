#!/usr/bin/env bash
# The whole recipe in small, on the CPU or a GPU: bash scripts/demo.sh [--from-scratch] [extra arguments]
# It starts from the network that comes along; with --from-scratch from one that it trains first.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
recipe=demo
if [ "${1:-}" = --from-scratch ]; then
    recipe=demo_from_scratch
    shift
fi
exec "$PYTHON" -m basicsr_ssl train -opt "options/demo/$recipe.yml" "$@"
