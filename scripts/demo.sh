#!/usr/bin/env bash
# The whole recipe in small, on the CPU or a GPU: bash scripts/demo.sh [extra arguments]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
exec "$PYTHON" -m basicsr_ssl train -opt options/demo/demo.yml "$@"
