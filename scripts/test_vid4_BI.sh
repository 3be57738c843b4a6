#!/usr/bin/env bash
# Vid4, BI: PSNR and SSIM on Y: bash scripts/test_vid4_BI.sh CHECKPOINT|bicubic [N] [extra arguments]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
test_benchmark options/test/Vid4_BI.yml "$@"
