# shellcheck shell=bash
# Shared by the scripts of this folder, which source it: paths, errors, the choice of Python, the launch through torchrun.

called_from=$PWD
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$root" || exit
case ${DATA_ROOT:-/} in  # as the caller means it
    /* | '~'*) ;;
    *) export DATA_ROOT=$called_from/$DATA_ROOT ;;
esac
# OpenMP's threads spin while they wait, which beside any other load makes training of small networks many times slower.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}

die() {  # message...
    printf 'error: %s\n' "$*" >&2
    exit 2
}

help_if_asked() {  # USAGE [the script's arguments...]: prints the usage and ends, if the first of them asks for it
    [[ ${2:-} == -h || ${2:-} == --help ]] || return 0
    printf '%s\n' "$1"
    exit 0
}

environment() {  # prints the folder of the active virtual environment, else that of the project's own
    if [[ -n ${VIRTUAL_ENV:-} ]]; then
        printf '%s\n' "$VIRTUAL_ENV"
    elif [[ -n ${CONDA_PREFIX:-} && ${CONDA_DEFAULT_ENV:-} != base ]]; then
        printf '%s\n' "$CONDA_PREFIX"
    else
        printf '%s\n' "$root/.venv"
    fi
}

choose_python() {  # sets PYTHON unless the caller did: the interpreter of the environment, as it is
    if [[ -z ${PYTHON:-} ]]; then
        PYTHON=$(environment)/bin/python
    fi
    command -v "$PYTHON" >/dev/null ||
        die "no Python at $PYTHON: run 'bash scripts/setup_env.sh', activate the environment to use, or set PYTHON"
}

find_file() {  # WHAT FILE, as the caller or the project names it; prints a path that is valid in the project's folder
    if [[ $2 != /* && $called_from != "$root" && -f $called_from/$2 ]]; then
        printf '%s\n' "$called_from/$2"
    elif [[ -f $2 ]]; then
        printf '%s\n' "$2"
    elif [[ $2 == /* ]]; then
        die "$1 $2 not found"
    else
        die "$1 $2 not found, neither from $called_from nor from $root"
    fi
}

launch() {  # train|test N OPT [extra arguments...]: N processes on this machine
    local command=$1
    shift
    local usage="usage: bash scripts/dist_$command.sh N OPT [extra arguments]
  N    processes on this machine: one per GPU, or any number on the CPU
  OPT  option file
Several machines: the same command on each, with NNODES, NODE_RANK (0 on the first) and MASTER_ADDR set;
MASTER_PORT is 29500 unless set. PYTHON names the interpreter, by default that of the active environment or of .venv."
    help_if_asked "$usage" "$@"
    [[ $# -ge 2 ]] || die "N and OPT are needed"$'\n'"$usage"
    [[ $1 =~ ^[1-9][0-9]*$ ]] || die "N must be a positive number of processes, not '$1'"$'\n'"$usage"
    local processes=$1 option
    option=$(find_file "option file" "$2")
    shift 2
    start "$command" "$processes" "$option" "$@"
}

start() {  # train|test N OPT [extra arguments...]: through torchrun
    local command=$1 processes=$2 option=$3
    shift 3
    local nodes=${NNODES:-1} rendezvous
    if [[ $nodes == 1 && -z ${MASTER_PORT:-} ]]; then
        rendezvous=(--standalone)  # takes a free port
    elif [[ $nodes == 1 ]]; then
        rendezvous=(--master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "$MASTER_PORT")
    else
        [[ -n ${MASTER_ADDR:-} ]] || die "NNODES=$nodes needs MASTER_ADDR, the address of the first machine"
        [[ -n ${NODE_RANK:-} ]] || die "NNODES=$nodes needs NODE_RANK, this machine's number from 0 to $((nodes - 1))"
        rendezvous=(--nnodes "$nodes" --node_rank "$NODE_RANK"
            --master_addr "$MASTER_ADDR" --master_port "${MASTER_PORT:-29500}")
    fi

    choose_python
    if [[ -z ${OMP_NUM_THREADS:-} ]]; then
        # torchrun would give each process a single thread: on the CPU that leaves most cores idle.
        OMP_NUM_THREADS=$("$PYTHON" -c "import os; print(max(1, (os.cpu_count() or 1) // $processes))")
        export OMP_NUM_THREADS
    fi
    exec "$PYTHON" -m torch.distributed.run "${rendezvous[@]}" --nproc_per_node "$processes" \
        -m basicsr_ssl "$command" -opt "$option" --launcher pytorch "$@"
}

test_benchmark() {  # OPT CHECKPOINT|bicubic [N] [extra arguments...]; in OPT, SCALE becomes that of the network
    local option=$1 script usage more=""
    shift
    script=scripts/$(basename "$0")
    [[ $option != *SCALE* ]] || more="
SCALE says by how much bicubic enlarges (4); networks say it themselves. SETS='Set5 Set14' tests on these sets only."
    usage="usage: bash $script CHECKPOINT|bicubic [N] [extra arguments]
  CHECKPOINT  network file of any form (dense, gated, compact; .safetensors, .pth, .pt), or zoo://NAME of options/zoo.yml
  N           processes: one per GPU, or any number on the CPU; without it one process, not started through torchrun
DATA_ROOT says where the data lie (datasets/, see datasets/README.md). Of the extra arguments, --allow-partial tests on
what there is of the benchmark, and --force_yml KEY=VALUE changes options: --force_yml val:save_img=true saves the frames.
The result is results/<benchmark>_<degradation>_<network>/results.json, and table.md beside it.$more"
    help_if_asked "$usage" "$@"
    [[ -n ${1:-} ]] || die "a checkpoint, or bicubic, is needed"$'\n'"$usage"
    local checkpoint=$1 processes=""
    shift
    [[ $checkpoint == bicubic || $checkpoint == *://* ]] || checkpoint=$(find_file checkpoint "$checkpoint")
    if [[ $# -gt 0 && $1 != -* ]]; then
        [[ $1 =~ ^[1-9][0-9]*$ ]] || die "N must be a positive number of processes, not '$1'"$'\n'"$usage"
        processes=$1
        shift
    fi
    if [[ $option == *SCALE* ]]; then
        choose_python
        local scale=${SCALE:-4}
        [[ $checkpoint == bicubic ]] || scale=$("$PYTHON" -m basicsr_ssl info --json "$checkpoint" |
            "$PYTHON" -c 'import json, sys; print(json.load(sys.stdin)["args"].get("scale", "unknown"))')
        option=${option/SCALE/$scale}
        [[ $scale == [234] ]] || die "there are no test sets for scale $scale"
        local name
        for name in Set5 Set14 B100 Urban100; do
            [[ " ${SETS:-$name} " == *" $name "* ]] || set -- "$@" --force_yml "datasets:test_$name=none"
        done
    fi
    # quoted for YAML, which would read 123 as a number, and " #" as the beginning of a comment
    local quote="'"
    set -- --force_yml "path:pretrain_network_g='${checkpoint//$quote/$quote$quote}'" "$@"
    [[ -z $processes ]] || start test "$processes" "$option" "$@"
    choose_python
    exec "$PYTHON" -m basicsr_ssl test -opt "$option" "$@"
}
