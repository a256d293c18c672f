#!/usr/bin/env bash
# What every job of `./run_all.sh --slurm` does around its command. Slurm signals this shell alone (--signal=B:USR1), some
# time before it takes the node back; then a file appears whose name the command and all that it started know, training
# writes a checkpoint, conversations close their turns, and the job is queued again under its number.
# usage: cluster/job.sh SECONDS REQUEUES COMMAND...   SECONDS: from the signal to the end of the job
set -uo pipefail
lead=$1 most=$2
shift 2
place="$(mktemp -d)"
export REALM_STOP_FILE="$place/stop"

say() { echo "$(date '+%Y-%m-%d %H:%M:%S') job ${SLURM_JOB_ID:-none}: $*"; }

again() {  # a job that is queued again is ended by Slurm, wherever it is
  if [ "${SLURM_RESTART_COUNT:-0}" -lt "$most" ]; then
    say "queued again"
    scontrol requeue "$SLURM_JOB_ID" && exec sleep 60
  else
    say "was queued again $most times (cluster.requeues) and is not any more"
  fi
}

late=""
stop() {
  say "asked to stop"
  : > "$REALM_STOP_FILE"
  late=$((SECONDS + (lead > 30 ? lead - 20 : lead / 3)))
}
trap stop USR1

say "begins on $(hostname), GPUs: ${CUDA_VISIBLE_DEVICES:-none}"
"$@" &
command=$!
wait "$command"
code=$?
while kill -0 "$command" 2>/dev/null; do  # the signal ended the wait, not the command
  # What does not know how to stop, or takes too long: it is queued again before Slurm would end it for good.
  if [ -n "$late" ] && [ "$SECONDS" -ge "$late" ]; then late="" && again; fi
  sleep 1
done
if [ -e "$REALM_STOP_FILE" ]; then
  wait "$command"
  code=$?
fi
say "ended with code $code"
if [ "$code" -ne 0 ] && [ -e "$REALM_STOP_FILE" ]; then again; fi
rm -rf "$place"
exit "$code"
