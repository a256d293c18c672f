#!/usr/bin/env bash
# The whole paper with one command: set up, then the six notebooks in order, then one page to read.
# The same stages run on a laptop and on a cluster; only the profile's values differ.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
  cat <<'TEXT'
usage: ./run_all.sh [options]
  --profile NAME   smoke, cpu (default), gpu, paper, or the path of a YAML file
  --from NN        start at this stage (01 to 06)
  --only NN        run this stage alone
  --force          run stages even if nothing changed; what was said and answered is used again, not paid again, and
                   what was trained is trained anew
  --dry-run        validate the profile and print the stages: what each reads and writes, what would be skipped;
                   for the two training stages parameters, memory, tokens, steps and a range of time; what is to be
                   downloaded; and what would stop it: seeds or sessions too few, contexts too short, memory, keys and
                   programs that are not there
  --slurm          submit what is left to do to Slurm, a job a stage, the simulation as an array of shards, each after the
                   one before it; again after a failure, and it goes on; with --dry-run print every script. The profile's
                   block cluster says what jobs ask for: cluster/README.md
  --status         how stages, jobs and conversations of a run stand, and what is spent
  --fetch          bring in all that a profile needs from outside (data, models, what serves them), for nodes without
                   a network; --slurm does so first
  --gpus N         with --dry-run: GPUs to estimate for (default: 4 for a full fine-tune, else 1)
  --serving-env    make .venv-serving from cluster/serving.txt: vLLM, which profiles gpu and paper serve models with
  --publish        make a finished run a reference: its figures and metrics to figures/ (profiles other than cpu: to
                   figures/<profile>/), the README's results block
  --tidy           list what reruns set aside in runs/<profile>/set_aside/, with sizes, and remove it after a yes
  --yes            with --tidy: remove it without asking
  --figures        draw the published figures anew, and the README's results block, from the numbers in figures/ alone:
                   no stage is run, nothing is downloaded but the packages
  --lab [...]      set up, then open JupyterLab on notebooks/ with the right kernel; what follows is for JupyterLab,
                   such as --no-browser --port 8889
  --test           set up, then run the test suite
  -h, --help       this text
Results land in runs/<profile>/; open runs/<profile>/report.html. Nothing that was paid for or trained is deleted: what
no longer fits is set aside. Call again after an interruption, and it goes on. REALM_CACHE moves the cache of data and models, REALM_RUNS the results.
TEXT
}

fail() { echo "error: $1" >&2; exit 2; }

PROFILE=cpu FROM=01 ONLY="" DRY_RUN="" PUBLISH=() TEST="" GPUS="" SERVING="" TIDY=() FORCE=() FIGURES="" LAB="" CLUSTER=()
while [ $# -gt 0 ]; do
  case "$1" in
    --profile) PROFILE="${2:?$1 needs a value}"; shift 2 ;;
    --from) FROM="${2:?$1 needs a value}"; shift 2 ;;
    --only) ONLY="${2:?$1 needs a value}"; shift 2 ;;
    --force) FORCE=(--force); shift ;;
    --dry-run) DRY_RUN=1; shift ;;
    --gpus) GPUS="${2:?$1 needs a value}"; shift 2 ;;
    --serving-env) SERVING=1; shift ;;
    --slurm|--status|--fetch) CLUSTER+=("$1"); shift ;;
    --publish) PUBLISH=(--publish); shift ;;
    --tidy|--yes) TIDY+=("$1"); shift ;;
    --figures) FIGURES=1; shift ;;
    --lab) LAB=1; shift; break ;;
    --test) TEST=1; shift ;;
    -h|--help) usage; exit 0 ;;
    *) fail "$1: unknown option; see ./run_all.sh --help" ;;
  esac
done
for number in "$FROM" ${ONLY:+"$ONLY"}; do
  [[ "$number" =~ ^0?[1-6]$ ]] || fail "$number: no such stage; allowed: 01 to 06"
done
[ ${#CLUSTER[@]} -eq 0 ] || [ ${#FORCE[@]} -eq 0 ] \
  || fail "--force goes with a run on this machine: a job that is queued again would begin anew"

# ---- set up: an active environment that satisfies the pins serves as it is; else .venv, made once.
satisfies() { "$1" lib/realm/pins.py "${@:2}" >/dev/null 2>&1; }
problem() { "$1" lib/realm/pins.py "${@:2}" 2>&1 | tail -n 1; }

make_environment() {  # FOLDER LOCK: with nothing but what the lock file names
  local base
  base="$(unset VIRTUAL_ENV; command -v python3.11 || command -v python3.12 || command -v python3)" \
    || fail "no python3 found; install Python 3.11 or 3.12"
  "$base" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' \
    || fail "$base is $("$base" -V); install Python 3.11 or 3.12"
  "$base" -m venv "$1"
  "$1/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$2"
}

if [ -n "$SERVING" ]; then
  SERVER="$PWD/.venv-serving/bin/python" LOCK=cluster/serving.txt
  if ! satisfies "$SERVER" "$LOCK" --alone; then
    echo "setting up .venv-serving from $LOCK (about 10 GB, many minutes, once)"
    make_environment .venv-serving "$LOCK"
    satisfies "$SERVER" "$LOCK" --alone || fail ".venv-serving does not match $LOCK: $(problem "$SERVER" "$LOCK" --alone)"
  fi
  echo ".venv-serving holds what $LOCK names; an endpoint of engine vllm uses it by its key: environment: .venv-serving"
  exit
fi

if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && satisfies "$(command -v python)" requirements.lock; then
  PYTHON="$(command -v python)"
else
  PYTHON="$PWD/.venv/bin/python"
  if ! satisfies "$PYTHON" requirements.lock; then
    echo "setting up .venv from requirements.lock (some minutes, once)"
    make_environment .venv requirements.lock
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
    satisfies "$PYTHON" requirements.lock \
      || fail "the installed packages do not match requirements.lock: $(problem "$PYTHON" requirements.lock)"
  fi
fi
export TOKENIZERS_PARALLELISM=true

if [ -n "$LAB" ]; then
  exec "$PYTHON" -m realm.pipeline.lab "$@"   # notebooks fetch what they need themselves, so that it opens at once
fi
if [ -n "$FIGURES" ]; then
  exec "$PYTHON" -m realm.reporting.regenerate
fi
if [ ${#CLUSTER[@]} -gt 0 ]; then
  exec "$PYTHON" -m realm.cluster --profile "$PROFILE" "${CLUSTER[@]}" ${DRY_RUN:+--dry-run} --from "$FROM" ${ONLY:+--stage "$ONLY"}
fi
if [ -n "$DRY_RUN" ]; then
  exec "$PYTHON" -m realm.pipeline --profile "$PROFILE" --dry-run --from "$FROM" ${ONLY:+--stage "$ONLY"} ${GPUS:+--gpus "$GPUS"} ${FORCE[@]+"${FORCE[@]}"}
fi
if [ ${#TIDY[@]} -gt 0 ]; then
  exec "$PYTHON" -m realm.pipeline --profile "$PROFILE" "${TIDY[@]}"
fi
check() { "$PYTHON" -m realm.pipeline --profile "$PROFILE" --check "$@" ${FORCE[@]+"${FORCE[@]}"}; }
[ -n "$TEST" ] || check --from "$FROM" ${ONLY:+--stage "$ONLY"}            # what cannot run stops here, before it costs
"$PYTHON" -m realm.models.assets --quiet --profile "$PROFILE"              # data and models: fetched once, verified each time
if [ -n "$TEST" ]; then
  # A file a process, the cores shared out: threads of two processes on one core would wait for each other, spinning.
  cores=$(nproc)
  workers=$((cores < 4 ? cores : 4))
  share=$((cores / workers))
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$share}" LOKY_MAX_CPU_COUNT="${LOKY_MAX_CPU_COUNT:-$share}"  # local servers
  exec "$PYTHON" -m pytest --numprocesses "$workers" --dist loadfile --no-loadscope-reorder
fi


# ---- the stages in order. This process becomes the one that runs them, so that whoever stops it stops them all.
#   01  data: read the cut-off ShareGPT file, clean it by the paper's steps, split it by session, show the masks
#   02  UserGPT: QLoRA on the human turns; perplexity of held-out human turns before and after
#   03  RealChat: UserGPT talks with a responder, free and seeded, over the OpenAI protocol
#   04  ReaLM: QLoRA on the answers of RealChat; perplexity of held-out real answers before and after
#   05  MT-Bench: base model and ReaLM answer; the paper's figures from the published scores
#   06  realism card: UserGPT, its untrained base and two role-players beside humans, with the human floor
if [ -n "$ONLY" ]; then WHICH=(--stage "$ONLY"); else WHICH=(--all --from "$FROM"); fi
exec "$PYTHON" -m realm.pipeline --profile "$PROFILE" "${WHICH[@]}" --report ${FORCE[@]+"${FORCE[@]}"} ${PUBLISH[@]+"${PUBLISH[@]}"}
