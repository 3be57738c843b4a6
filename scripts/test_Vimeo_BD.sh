#!/usr/bin/env bash
# Vimeo90K-T, BD: PSNR and SSIM on Y, centre frames: bash scripts/test_Vimeo_BD.sh CHECKPOINT|bicubic [N] [extra arguments]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
test_benchmark options/test/Vimeo90K-T_BD.yml "$@"
