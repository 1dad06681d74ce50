#!/usr/bin/env bash
# Train PRESET in the folder RUN on several machines: give this line on each of them, within ten
# minutes; the same lines go on with the run.
#
#   NODES=2 HEAD=node1 recipes/several-nodes.sh PRESET RUN [--field.name VALUE ...]
#
# SIGTERM, SIGUSR1, SIGHUP or Ctrl-C save the run and end it with code 75; code 0 is a trained run.
set -euo pipefail

# Settings that must be given, the same on all machines.
NODES=${NODES:-} # how many machines take part
HEAD=${HEAD:-}   # name or address of one of them, at which all meet

# Settings that have defaults.
PORT=${PORT:-29500}         # a port of HEAD that the others can reach
PROCESSES=${PROCESSES:-gpu} # processes on this machine: a number, or gpu for one on each GPU
RESTARTS=${RESTARTS:-3}     # how often all processes start anew, from the last checkpoint
GRACE=${GRACE:-300}         # seconds for the step under way and its checkpoint after a signal
INTERFACE=${INTERFACE:-}    # network interface, as in `ip link`, where the default is a wrong one

refuse() {
  echo "${0##*/}: error: $1" >&2
  exit 2
}

(($# >= 2)) || refuse "PRESET and RUN are missing — give them as in: $0 diffmoe-l-e16-flow /data/run"
PRESET=$1
RUN=$2
shift 2
[[ -n $NODES ]] || refuse "NODES is not set — say how many machines take part, as in NODES=2"
[[ -n $HEAD ]] || refuse "HEAD is not set — name the machine at which all meet, as in HEAD=node1"
command -v torchrun >/dev/null || refuse "no torchrun on the PATH — activate diffmoe's environment"

# torchrun takes a stop at the end of --max-time for a failure: a restart would give that time anew.
for word in "$@"; do
  [[ $word != --max[-_]time* ]] || RESTARTS=0
done

export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=$GRACE # torchrun kills what has not ended by then
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # rounding depends on it: never by the machine
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}        # the cause of a failed connection, no more
if [[ -n $INTERFACE ]]; then
  export NCCL_SOCKET_IFNAME=$INTERFACE GLOO_SOCKET_IFNAME=$INTERFACE
fi

# torchrun kills its workers at a second signal, and SLURM sends SIGTERM twice when time is over:
# torchrun gets a process group of its own (set -m) and only the first signal; a second Ctrl-C is
# meant. Ranks and addresses are agreed upon at HEAD; who comes early waits for it (read_timeout).
# Without the bare -- torchrun would take --run for an option of its own.
set -m
torchrun --nnodes="$NODES" --nproc-per-node="$PROCESSES" --max-restarts="$RESTARTS" \
  --rdzv-backend=c10d --rdzv-endpoint="$HEAD:$PORT" --rdzv-id="$(basename -- "$RUN")" \
  --rdzv-conf=join_timeout=600,read_timeout=600 \
  -m -- diffmoe train "$PRESET" --run "$RUN" "$@" &
agent=$!

asked=
stop() {
  asked=yes
  trap '' TERM USR1 HUP
  kill -TERM "$agent" || true
}
trap stop INT TERM USR1 HUP

while kill -0 "$agent" 2>/dev/null; do # a signal ends the wait, not torchrun
  wait "$agent" || true
done
status=0
wait "$agent" || status=$?
if [[ -n $asked ]] && ((status)); then
  exit 75 # torchrun says 1 whatever its workers said
fi
exit "$status"
