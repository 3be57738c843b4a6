# shellcheck shell=bash
# Shared by the scripts of this folder, which source it: paths, errors, the choice of Python, the launch through torchrun.

called_from=$PWD
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$root" || exit
# OpenMP's threads spin while they wait, which beside any other load makes training of small networks many times slower.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}

die() {  # message...
    printf 'error: %s\n' "$*" >&2
    exit 2
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

option_file() {  # FILE, as the caller or the project names it; prints a path that is valid in the project's folder
    if [[ $1 != /* && $called_from != "$root" && -f $called_from/$1 ]]; then
        printf '%s\n' "$called_from/$1"
    elif [[ -f $1 ]]; then
        printf '%s\n' "$1"
    else
        die "option file $1 not found, neither from $called_from nor from $root"
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
    case ${1:-} in
        -h | --help)
            printf '%s\n' "$usage"
            exit 0
            ;;
    esac
    [[ $# -ge 2 ]] || die "N and OPT are needed"$'\n'"$usage"
    [[ $1 =~ ^[1-9][0-9]*$ ]] || die "N must be a positive number of processes, not '$1'"$'\n'"$usage"
    local processes=$1 option
    option=$(option_file "$2")
    shift 2

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
