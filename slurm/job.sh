# shellcheck shell=bash
# What the batch scripts share. They source it on the first node of the job, and call one of its functions:
#   train CONFIG [section.key=value ...]     attempt after attempt, until the run is done
#   alone SCRIPT ARGUMENTS ...               a command of the project, in one process
# Exit codes of the job: 0 done, 1 given up, 2 wrong configuration or input, 143 cancelled.

export UNIX_ROOT
set -uo pipefail
# shellcheck source=slurm/settings.sh
. "$UNIX_ROOT/slurm/settings.sh"
TOLD=''  # what Slurm told this script: warned (the end is near), cancelled
LEFT_OUT=()  # nodes of this allocation that did not pass the check
STEP='' GUARD=''

say() { echo "$(date +%FT%T) job.sh: $*"; }

# Sets INSIDE and CONTAINER: what stands before a command on a node, and what srun is told, to be in the container.
enter_container() {
  local image=${UNIX_CONTAINER#*:} folders=$UNIX_ROOT,$UNIX_WORK${UNIX_MOUNTS:+,$UNIX_MOUNTS}
  INSIDE=() CONTAINER=()
  case $UNIX_CONTAINER in
    '') [ -x "$UNIX_VENV/bin/python" ] || refuse "$UNIX_VENV/bin/python is missing: run make setup, or set UNIX_VENV or" \
          "UNIX_CONTAINER in slurm/site.sh" ;;
    pyxis:*) CONTAINER=("--container-image=$image" "--container-mounts=$(sed -E 's/([^,]+)/\1:\1/g' <<< "$folders")") ;;
    apptainer:*)
      command -v apptainer >/dev/null || refuse "UNIX_CONTAINER is $UNIX_CONTAINER, but this node has no apptainer"
      [ -e "$image" ] || refuse "$image is missing: set UNIX_CONTAINER in slurm/site.sh to an image that is there"
      INSIDE=(apptainer exec --bind "$folders")
      [ "$UNIX_DEVICE" = cpu ] || INSIDE+=(--nv)
      INSIDE+=("$image") ;;
    *) refuse "UNIX_CONTAINER is $UNIX_CONTAINER: write pyxis:IMAGE or apptainer:IMAGE, or leave it empty" ;;
  esac
}

# A command of the project in one process, on this node.
once() {
  if [ ${#CONTAINER[@]} -gt 0 ]; then
    env -u MASTER_PORT srun --overlap --nodes=1 --ntasks=1 --nodelist="$SLURMD_NODENAME" "${CONTAINER[@]}" \
      "$UNIX_ROOT/slurm/rank.sh" "$@"
  else
    env -u MASTER_PORT "${INSIDE[@]}" "$UNIX_ROOT/slurm/rank.sh" "$@"
  fi
}

# As many processes on each of NODES as is said, each a rank: spread PROCESSES-PER-NODE [srun options] -- SCRIPT ...
spread() {
  local each=$1 options=()
  shift
  while [ "$1" != -- ]; do options+=("$1"); shift; done
  shift
  local cpus=$((${SLURM_CPUS_ON_NODE:-$each} / each))
  export UNIX_LOCAL_RANKS=$each OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cpus > 0 ? cpus : 1))}
  export MASTER_ADDR=${NODES[0]} MASTER_PORT=$((20000 + (SLURM_JOB_ID * 101 + ${ATTEMPT:-0} * 7 + each) % 10000))
  # --overlap: where a node dies after the ranks of the others have left, Slurm keeps the dead step on the books of the living
  # nodes, and the next step that wants their processors would wait for ever. There is one of these at a time anyway.
  [ -z "$UNIX_INTERFACE" ] || export NCCL_SOCKET_IFNAME=$UNIX_INTERFACE GLOO_SOCKET_IFNAME=$UNIX_INTERFACE
  attend srun --overlap --nodes="${#NODES[@]}" --nodelist="$(joined "${NODES[@]}")" --ntasks=$((${#NODES[@]} * each)) \
    --ntasks-per-node="$each" --cpus-per-task=$((cpus > 0 ? cpus : 1)) --mem=0 \
    --kill-on-bad-exit=0 --wait="$UNIX_WAIT" "${CONTAINER[@]}" "${options[@]}" \
    "${INSIDE[@]}" "$UNIX_ROOT/slurm/rank.sh" "$@"
}

# Run a step so that Slurm's signals to this script are heard meanwhile -> its exit code.
attend() {
  local code again
  "$@" &
  STEP=$!
  while :; do
    wait "$STEP"
    code=$?
    kill -0 "$STEP" 2>/dev/null || break
  done
  wait "$STEP" 2>/dev/null  # the code, where a signal was heard in the moment of its end
  again=$?
  STEP=''
  [ $again = 127 ] || code=$again
  return "$code"
}

# On the last node, so that the loss of the first one is noticed by somebody.
start_guard() {
  GUARD=''
  [ ${#NODES[@]} -gt 1 ] || return 0
  env -u SLURM_GPUS_PER_NODE -u SLURM_GPUS srun --overlap --nodes=1 --ntasks=1 --nodelist="${NODES[-1]}" --gres=none --mem=0 \
    "$UNIX_ROOT/slurm/guard.sh" &
  GUARD=$!
}

stop_guard() {
  [ -n "$GUARD" ] || return 0
  kill "$GUARD" 2>/dev/null
  wait "$GUARD" 2>/dev/null
  GUARD=''
}

joined() { local IFS=,; echo "$*"; }

warned() {
  TOLD=${TOLD:-warned}
  say "Slurm says that the end is near: saving, then going back into the queue"
  [ -z "$STEP" ] || scancel --signal=USR1 "$SLURM_JOB_ID"  # to the ranks; this script has heard it
}

cancelled() {
  TOLD=cancelled  # the ranks are told by Slurm; if this is a pre-emption, Slurm queues the job again
  say "cancelled: waiting for the ranks to save"
}

# Whether Slurm still means this script by the job. On a node that was cut off, a script can outlive its job.
ours() {
  local try shown
  for try in $(seq 60); do
    if shown=$(timeout 30 scontrol show job -o "$SLURM_JOB_ID" 2>/dev/null); then
      [[ $shown == *" JobState=RUNNING "* && $shown == *" Restarts=${SLURM_RESTART_COUNT:-0} "* \
        && $shown == *" BatchHost=$SLURMD_NODENAME "* ]]
      return
    fi
    sleep 10  # the controller is away: it may be restarted, or this node be cut off
  done
  return 1
}

# Names of the nodes that the job still has and that Slurm hears, without those that are left out.
healthy_nodes() {
  local list name state
  list=$(timeout 30 scontrol show job -o "$SLURM_JOB_ID" | sed -n 's/.* NodeList=\([^ ]*\).*/\1/p')
  timeout 30 sinfo -h -N -n "$list" -o '%N %T' | sort -uV | while read -r name state; do
    case $state in *down* | *fail* | *unk* | *power* | *'*') continue ;; esac
    [[ " ${LEFT_OUT[*]} " == *" $name "* ]] || echo "$name"
  done
}

ranks_of_a_node() {
  local count=${UNIX_RANKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-${SLURM_NTASKS_PER_NODE:-}}}
  [[ $count =~ ^[1-9][0-9]*$ ]] || refuse "how many processes a node has is not known: ask for --gpus-per-node, or set" \
    "UNIX_RANKS_PER_NODE in slurm/site.sh"
  echo "$count"
}

# Every node is looked at before ranks are started on it; the names of bad ones go to LEFT_OUT.
passed_check() {
  local folder=$RUN/preflight/attempt_$(printf %04d "$ATTEMPT") bad unjudged="the check of the nodes failed, see above"
  CHECKED=''
  [ -z "$TOLD" ] || return 0  # a step of a job that is being cancelled waits until Slurm kills it
  local limits=(--nodes "$(joined "${NODES[@]}")" --ranks-per-node "$RANKS" --device "$UNIX_DEVICE"
    --min-disk "$UNIX_MIN_DISK" --min-bandwidth "$UNIX_MIN_BANDWIDTH" --max-clock "$UNIX_MAX_CLOCK")
  spread 1 --time=5 -- slurm/preflight.py node "$folder" "${OVERRIDES[@]}" --config "$CONFIG"
  [ -z "$TOLD" ] || return 0
  bad=$(once slurm/preflight.py judge "$folder" "${limits[@]}") || { CHECKED=$unjudged; return 1; }
  if [ -z "$bad" ] && [ ${#NODES[@]} -gt 1 ] && [ -z "$LINKED" ]; then
    spread "$RANKS" --time=5 -- slurm/preflight.py link "$folder" --device "$UNIX_DEVICE"
    [ -z "$TOLD" ] || return 0
    bad=$(once slurm/preflight.py judge "$folder" "${limits[@]}" --links) || { CHECKED=$unjudged; return 1; }
    LINKED=yes
  fi
  [ -n "$bad" ] || return 0
  read -ra LEFT_OUT <<< "${LEFT_OUT[*]} $bad"
  return 1
}

# Another job may train in this run folder: refused, because each would take the folder from the other without end. One that was
# cancelled and is still saving is waited for: it could not publish its checkpoint any more.
alone_in_the_folder() {
  local job began start state said=''
  read -r job began < <(sed -nE 's/.*"job": "([0-9]+)".*"began": ([0-9]+).*/\1 \2/p' "$RUN/attempt.json" 2>/dev/null)
  [ -n "${job:-}" ] && [ "$job" != "$SLURM_JOB_ID" ] || return 0
  for _ in {1..120}; do  # ten minutes: a node that is down can keep a job for longer in this state
    read -r start state < <(timeout 30 squeue -h -t RUNNING,SUSPENDED,COMPLETING -j "$job" -o '%S %T' 2>/dev/null)
    start=$(date -d "${start:-}" +%s 2>/dev/null) && [ -n "${state:-}" ] && [ "$start" -le "$began" ] || return 0
    [ "$state" = COMPLETING ] || refuse "$RUN: job $job trains there (it is $state): wait for its end or scancel $job, or" \
      "choose another run.folder"
    [ -n "$said" ] || say "job $job is ending in $RUN: waiting until it has saved"
    said=yes
    [ -z "$TOLD" ] || return 0
    sleep 5
  done
}

# Each start of a job whose whole time is within Slurm's warning of its end saves and leaves at once.
check_time() {
  local ahead limit start end
  read -r start end < <(timeout 30 squeue -h -j "$SLURM_JOB_ID" -o '%S %e' 2>/dev/null)
  [ -n "${end:-}" ] || return 0
  start=$(date -d "$start" +%s 2>/dev/null) && end=$(date -d "$end" +%s 2>/dev/null) || return 0  # there is no limit
  limit=$((end - start))
  ahead=$(sed -nE 's/^#SBATCH --signal=.*@([0-9]+)$/\1/p' "$0" | head -1)
  [ "$limit" -gt "${ahead:-0}" ] || echo "warning: the time limit is $limit s, and the script has Slurm tell the" \
    "job $ahead s before its end to save (--signal): raise --time, or lower that number" >&2
}

finish() {  # EXIT-CODE [REASON]: write down how the attempt ended -> 0 when the next one is to begin here
  local decision
  decision=$(once slurm/attempt.py end "$RUN" --attempt "$ATTEMPT" --code "$1" --reason "${2:-}" --signal "$TOLD" \
    --limit "$UNIX_RESTARTS")
  case $decision in
    done) exit 0 ;;
    refused) exit 2 ;;
    restart) return 0 ;;
    requeue) queue_again ;;
    *) if [ "$TOLD" = cancelled ]; then exit 143; else exit 1; fi ;;
  esac
}

queue_again() {
  [ "$TOLD" != cancelled ] || { say "cancelled: not going back into the queue"; exit 143; }  # Slurm queues what it pre-empts
  trap 'exit 143' TERM
  timeout 60 scontrol requeue "$SLURM_JOB_ID" || { say "this cluster does not requeue: submit the same command again"; exit 1; }
  sleep 300  # Slurm ends this script
  exit 1
}

# Why a run is not what was meant, known without looking at it.
check_command() {
  local word
  [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || refuse "this is a task of a job array, and its tasks would train in one run.folder: submit" \
    "without --array, one job for each run"
  for word in "$@"; do
    [[ $word != -* ]] || refuse "$word after the script: options of sbatch go before the script, and another configuration" \
      "is UNIX_CONFIG=FILE.yaml; after it are overrides, as in optim.lr=1e-4"
  done
}

train() {
  local code logs tail plan
  CONFIG=$(realpath -ms "${UNIX_CONFIG:-$UNIX_ROOT/$1}")  # of the folder of sbatch, as for slurm/submit.py
  shift
  check_command "$@"
  OVERRIDES=("$@") LINKED='' ATTEMPT=0
  enter_container
  RANKS=$(ranks_of_a_node) || exit 2
  trap warned USR1
  trap cancelled TERM
  check_time
  say "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, started by Slurm $((${SLURM_RESTART_COUNT:-0} + 1)) times so far"
  while ours; do
    mapfile -t NODES < <(healthy_nodes)
    [ ${#NODES[@]} -gt 0 ] || { say "no node of this allocation is left"; queue_again; }
    plan=$(once slurm/plan.py --config "$CONFIG" --nodes "${#NODES[@]}" --ranks-per-node "$RANKS" --for-script \
      $([ "$ATTEMPT" = 0 ] || echo --no-data) "${OVERRIDES[@]}") || exit $?
    RUN=${plan#* }
    NODES=("${NODES[@]:0:${plan%% *}}")
    alone_in_the_folder
    ATTEMPT=$(once slurm/attempt.py begin "$RUN" --nodes "$(joined "${NODES[@]}")" --ranks $((${#NODES[@]} * RANKS))) || exit $?
    say "attempt $ATTEMPT: ${#NODES[@]} nodes ($(joined "${NODES[@]}")) x $RANKS ranks"
    if ! passed_check; then
      finish 75 "${CHECKED:-left out after the check of the nodes: ${LEFT_OUT[*]}}"
      continue
    fi
    code=130  # told to leave before the ranks were started
    if [ -z "$TOLD" ]; then
      logs=$RUN/logs/attempt_$(printf %04d "$ATTEMPT")
      mkdir -p "$logs"
      export UNIX_RUN_ATTEMPT=$ATTEMPT  # a process of an earlier attempt must not write checkpoints any more
      : > "$logs/rank_0000.log"
      tail -n +1 -F "$logs/rank_0000.log" 2>/dev/null &
      tail=$!
      start_guard 2>/dev/null
      spread "$RANKS" "--output=${logs//%/%%}/rank_%4t.log" -- \
        pretrain/train.py --config "$CONFIG" "${OVERRIDES[@]}" 2> >(tee "$logs/srun.log" >&2)
      code=$?
      stop_guard
      sleep 1
      kill "$tail"
    fi
    finish "$code"
  done
  say "this is no longer the script of job $SLURM_JOB_ID: leaving without a word to the run"
  exit 1
}

alone() {
  enter_container
  if [ ${#CONTAINER[@]} -gt 0 ]; then
    once "$@"
    exit $?
  fi
  exec "${INSIDE[@]}" "$UNIX_ROOT/slurm/rank.sh" "$@"  # in the place of this shell, so that Slurm's signals reach it
}
