#!/usr/bin/env bash
# Train PRESET in the folder RUN on all GPUs of this machine; the same line goes on with the run.
#
#   recipes/one-node.sh PRESET RUN [--field.name VALUE ...]
#
# SIGTERM, SIGUSR1 or Ctrl-C save the run and end it; the exit code is 0 only when it is trained.
set -euo pipefail

# Settings, from the environment: PROCESSES=2 recipes/one-node.sh ...
PROCESSES=${PROCESSES:-gpu} # processes on this machine: a number, or gpu for one on each GPU
RESTARTS=${RESTARTS:-3}     # how often all processes start anew, from the last checkpoint
GRACE=${GRACE:-300}         # seconds for the step under way and its checkpoint after a signal

refuse() {
  echo "${0##*/}: error: $1" >&2
  exit 2
}

(($# >= 2)) || refuse "PRESET and RUN are missing — give them as in: $0 digits-diffmoe runs/mine"
PRESET=$1
RUN=$2
shift 2
command -v torchrun >/dev/null || refuse "no torchrun on the PATH — activate diffmoe's environment"

# torchrun takes a stop at the end of --max-time for a failure: a restart would give that time anew.
for word in "$@"; do
  [[ $word != --max[-_]time* ]] || RESTARTS=0
done

export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=$GRACE # torchrun kills what has not ended by then
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # rounding depends on it: never by the machine
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}        # the cause of a failed connection, no more

# --standalone finds a free port; torchrun passes the signals of the list on; without the bare --
# it would take --run for an option of its own.
exec torchrun --standalone --nproc-per-node="$PROCESSES" --max-restarts="$RESTARTS" \
  --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
  -m -- diffmoe train "$PRESET" --run "$RUN" "$@"
