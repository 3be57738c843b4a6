#!/usr/bin/env bash
# REDS4, BI: PSNR and SSIM on RGB, SSIM on Y as well: bash scripts/test_reds_BI.sh CHECKPOINT|bicubic [N] [extra arguments]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
test_benchmark options/test/REDS4_BI.yml "$@"
