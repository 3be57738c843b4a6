#!/usr/bin/env bash
# Install the project with the versions of constraints.txt, once. Other scripts source this file; it sets PYTHON.
# An active virtual environment is used as it is; otherwise .venv is made with the newest Python that the project supports.
# EXTRAS=dev installs ruff and pyright as well.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

supported() {  # PYTHON: whether it runs and is of a version that the project supports
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' >/dev/null 2>&1
}

make_environment() {  # FOLDER: a virtual environment with the newest supported Python of this machine
    local candidate found=""
    for candidate in python3.12 python3.11 python3.10 python3 python; do
        command -v "$candidate" >/dev/null || continue
        if ! supported "$candidate"; then
            found+="
  $candidate: $("$candidate" --version 2>&1 | head -n 1 || true)"
        elif ! "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then
            found+="
  $candidate: supported, but without the venv module (on Debian and Ubuntu: apt install $candidate-venv)"
        else
            echo "Making $1 with $("$candidate" --version)"
            "$candidate" -m venv --clear "$1"
            return
        fi
    done
    die "Python 3.10, 3.11 or 3.12 with the venv module is needed. Found:${found:- no Python at all}"
}

fingerprint() {  # what decides whether an installation is up to date, besides the extras
    "$PYTHON" - "$root" setup.py pyproject.toml requirements.txt constraints.txt <<'PY'
import hashlib, pathlib, sys
digest = hashlib.sha256(sys.argv[1].encode())
for name in sys.argv[2:]:
    digest.update(pathlib.Path(name).read_bytes())
print(digest.hexdigest())
PY
}

install() {  # EXTRAS
    # basicsr's setup.py asks for torch at build time. An isolated build would download another copy of it (gigabytes);
    # without isolation setuptools alone is enough, since basicsr's compiled operators are not built.
    "$PYTHON" -m pip install -c constraints.txt setuptools wheel &&
        "$PYTHON" -m pip install -c constraints.txt --use-pep517 --no-build-isolation -e ".[$1]"
}

set_up() {
    local extras=${EXTRAS:-test} folder stamp wanted installed=""
    [[ $extras == test || $extras == dev ]] || die "EXTRAS must be test or dev, not '$extras'"
    folder=$(environment)
    if [[ $folder == "$root/.venv" ]]; then
        { supported "$folder/bin/python" && "$folder/bin/python" -m pip --version >/dev/null 2>&1; } ||
            make_environment "$folder"
    elif ! supported "$folder/bin/python"; then
        die "the active environment $folder has $("$folder/bin/python" --version 2>&1 || true):" \
            "Python 3.10, 3.11 or 3.12 is needed. Deactivate it, or activate another"
    fi
    PYTHON=$folder/bin/python

    stamp=$folder/.basicsr_ssl
    wanted=$(fingerprint)
    [[ ! -f $stamp ]] || installed=$(<"$stamp")
    if [[ $installed == "$wanted $extras" || $installed == "$wanted dev" ]]; then  # dev includes test
        return
    fi
    echo "Installing the project and its dependencies into $folder: this takes some minutes, once"
    rm -f "$stamp"
    install "$extras" || die "the installation failed, see above; running the same command again continues it"
    # Written last, and whole or not at all: an interrupted installation is done again.
    echo "$wanted $extras" >"$stamp.part"
    mv "$stamp.part" "$stamp"
}

set_up
