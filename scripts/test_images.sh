#!/usr/bin/env bash
# Set5, Set14, B100 and Urban100, at the scale of the network: PSNR and SSIM on Y, without a border of as many pixels as
# the scale: bash scripts/test_images.sh CHECKPOINT|bicubic [N] [extra arguments]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
test_benchmark options/test/images_BIxSCALE.yml "$@"
