#!/usr/bin/env bash
# UDM10, BD: PSNR and SSIM on Y: bash scripts/test_udm10_BD.sh CHECKPOINT|bicubic [N] [extra arguments]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
test_benchmark options/test/UDM10_BD.yml "$@"
