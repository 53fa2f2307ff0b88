#!/usr/bin/env bash
# Makes a Cloud TPU, trains on every host of it, and takes it down again. See --help.
#
# Resuming is the trainer's work: the same workdir means "continue". This script only makes
# machines and starts the same command on them. Training does not hang on the connection: it
# writes to a file on its host and goes on when ssh is lost; the next `run` of the same command
# joins it.
set -euo pipefail

# Every default. A flag wins over its variable, the variable over the value that stands here.
NAME=${SSJAX_NAME:-}
ZONE=${SSJAX_ZONE:-}
TYPE=${SSJAX_TYPE:-}
PROJECT=${SSJAX_PROJECT:-} # empty: the project that gcloud is set to
REPO=${SSJAX_REPO:-}
REF=${SSJAX_REF:-main}
BUCKET=${SSJAX_BUCKET:-} # mounted on the hosts; empty: none
WORKDIR=${SSJAX_WORKDIR:-}
COPY_LOGS=${SSJAX_COPY_LOGS:-}                # directory; empty: logs stay on the hosts
POLL=${SSJAX_POLL:-10}                        # seconds between two looks at a queued request,
MAX_POLL=${SSJAX_MAX_POLL:-300}               # doubling up to this
MAX_WAIT=${SSJAX_MAX_WAIT:-86400}             # seconds to wait for capacity
BACKOFF=${SSJAX_BACKOFF:-10}                  # seconds before the first restart,
MAX_BACKOFF=${SSJAX_MAX_BACKOFF:-600}         # doubling up to this
MAX_RESTARTS=${SSJAX_MAX_RESTARTS:-20}        # restarts in a row
RESET_AFTER=${SSJAX_RESET_AFTER:-3600}        # training that ran this long clears the count
WORKER=${SSJAX_WORKER:-0}                     # whose log `logs` shows
TAIL=${SSJAX_TAIL:-100}                       # lines of it
readonly MAX_UNANSWERED=5                     # failed looks in a row before giving up
readonly HOST_DIR=ssjax                       # the checkout on a host, in the home directory
readonly HOST_LOG=ssjax-train.log             # there too; as in tpu_startup.sh
readonly MOUNT_POINT=/mnt/ssjax               # of the bucket; as in tpu_startup.sh
readonly STARTUP_LOG=/var/log/ssjax-train.log # as in tpu_startup.sh

readonly EXIT_BAD_INPUT=2         # of this script, gcloud and ssjax.train alike: never retried
readonly EXIT_DAMAGED=3           # of ssjax.train: no checkpoint is whole; never retried
readonly EXIT_DIVERGED=4          # of ssjax.train: would diverge again; never retried
readonly EXIT_RESUMABLE=42        # ssjax.train saved and stopped
readonly EXIT_LOST_CONNECTION=255 # ssh
readonly EXIT_INTERRUPTED=130

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly HERE

DRY_RUN=no
FOLLOW=no
PRICING=()      # --spot or --reserved; empty: on demand
CREATE_FLAGS=() # handed to gcloud as they are
SSH_FLAGS=()
HOST_ENV=() # NAME=VALUE for the trainer
TRAIN_ARGS=()

usage() {
  cat << 'END'
Usage: launch/tpu_vm.sh VERB --name NAME --zone ZONE [FLAGS] [-- TRAINING ARGUMENTS]

Verbs
  create    request a TPU and wait until it is active; with training arguments, every host
            starts them at every boot by itself (launch/tpu_startup.sh)
  setup     fetch the code, mount the bucket and build the environment on every host
  run       mount the bucket and start python -m ssjax.train with the arguments on every host;
            show its output
  babysit   create if needed, setup, run; again after a preemption or a failure
  status    print the state of the request
  logs      print the end of the training log of a host
  stop      ask the trainer on every host to save and stop
  delete    delete the request and its TPU

Flags, in brackets the variable that gives the same value
  --name NAME            of the TPU [SSJAX_NAME]
  --zone ZONE            [SSJAX_ZONE]
  --type TYPE            such as v5litepod-16; create, babysit [SSJAX_TYPE]
  --project PROJECT      default: gcloud's own [SSJAX_PROJECT]
  --repo URL             where hosts fetch the code [SSJAX_REPO]
  --ref REF              branch, tag or full commit, default main [SSJAX_REF]
  --bucket BUCKET        mounted at /mnt/ssjax on every host, default none [SSJAX_BUCKET]
  --workdir DIR          of the run, a path that all hosts see [SSJAX_WORKDIR]
  --env NAME=VALUE       for the trainer; may be repeated
  --spot | --reserved    default: on demand
  --copy-logs DIR        create with arguments: logs are copied there [SSJAX_COPY_LOGS]
  --gcloud-create FLAG   one more flag for gcloud's create; may be repeated
  --gcloud-ssh FLAG      one more flag for gcloud's ssh; may be repeated
  --poll SECONDS --max-poll SECONDS --max-wait SECONDS
                         waiting for capacity, 10 to 300, a day at most [SSJAX_POLL, ...]
  --backoff SECONDS --max-backoff SECONDS
                         before a restart, 10 to 600 [SSJAX_BACKOFF, ...]
  --max-restarts N       in a row, default 20 [SSJAX_MAX_RESTARTS]
  --reset-after SECONDS  training that ran this long clears that count, 3600
                         [SSJAX_RESET_AFTER]
  --worker N|all --tail LINES --follow
                         for logs; host 0 and 100 lines [SSJAX_WORKER, SSJAX_TAIL]
  --dry-run              print each command as it would run, call nothing
  --help                 this text

Exit codes: 0 done; 2 bad input; otherwise that of the training (3: no checkpoint is whole; 4:
diverged; 42: stopped after saving, run the same command again) or of gcloud (255: connection lost).
END
}

say() {
  printf 'tpu_vm: %s\n' "$*" >&2
}

bad_input() {
  say "error: $*"
  exit "$EXIT_BAD_INPUT"
}

# The one table of accelerators: sets RUNTIME to the runtime version for --type.
find_runtime() {
  case $TYPE in
    v4-[0-9]*) RUNTIME=tpu-ubuntu2204-base ;;
    v5litepod-[0-9]*) RUNTIME=v2-alpha-tpuv5-lite ;;
    v5p-[0-9]*) RUNTIME=v2-alpha-tpuv5 ;;
    v6e-[0-9]*) RUNTIME=v2-alpha-tpuv6e ;;
    *) bad_input "unknown accelerator type '$TYPE'; known: v4-N, v5litepod-N, v5p-N, v6e-N" \
      "(tpu7x: launch/jobset.yaml)" ;;
  esac
}

# --- the command line ---

parse() {
  (($#)) || bad_input "no verb; see launch/tpu_vm.sh --help"
  VERB=$1
  shift
  case $VERB in
    create | setup | run | babysit | status | logs | stop | delete) ;;
    help | --help | -h)
      usage
      exit 0
      ;;
    *) bad_input "unknown verb '$VERB'; see launch/tpu_vm.sh --help" ;;
  esac
  while (($#)); do
    # --flag=value is --flag value.
    if [[ $1 == --*=* ]]; then
      set -- "${1%%=*}" "${1#*=}" "${@:2}"
      case $1 in --dry-run | --spot | --reserved | --follow | --help)
        bad_input "$1 takes no value"
        ;;
      esac
    fi
    case $1 in
      --) TRAIN_ARGS=("${@:2}") && return ;;
      --dry-run) DRY_RUN=yes && shift ;;
      --follow) FOLLOW=yes && shift ;;
      --spot | --reserved) PRICING+=("$1") && shift ;;
      --help | -h) usage && exit 0 ;;
      --*) parse_value "$@" && shift 2 ;;
      *) bad_input "unexpected argument '$1'; training arguments follow a --" ;;
    esac
  done
}

parse_value() {
  case $1 in
    --name | --zone | --type | --project | --repo | --ref | --bucket | --workdir | --copy-logs | \
      --env | --gcloud-create | --gcloud-ssh | --worker) ;;
    --poll | --max-poll | --max-wait | --backoff | --max-backoff | --max-restarts | \
      --reset-after | --tail) ;;
    *) bad_input "unknown flag '$1'; see launch/tpu_vm.sh --help" ;;
  esac
  (($# > 1)) || bad_input "$1 needs a value"
  case $1 in
    --env)
      [[ $2 =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || bad_input "--env wants NAME=VALUE, not '$2'"
      HOST_ENV+=("$2")
      ;;
    --gcloud-create) CREATE_FLAGS+=("$2") ;;
    --gcloud-ssh) SSH_FLAGS+=("$2") ;;
    *)
      local variable=${1#--}
      variable=${variable^^}
      printf -v "${variable//-/_}" '%s' "$2"
      ;;
  esac
}

# Ends with the name of the first of these flags that has no value.
need() {
  local flag variable
  for flag; do
    variable=${flag^^}
    variable=${variable//-/_}
    [[ -n ${!variable} ]] || bad_input "$VERB needs --$flag or SSJAX_$variable"
  done
}

check() {
  local variable
  for variable in POLL MAX_POLL MAX_WAIT BACKOFF MAX_BACKOFF MAX_RESTARTS RESET_AFTER TAIL; do
    [[ ${!variable} =~ ^[0-9]+$ ]] || bad_input "$variable is not a whole number: '${!variable}'"
  done
  [[ $WORKER =~ ^([0-9]+|all)$ ]] || bad_input "--worker wants a number or all, not '$WORKER'"
  ((${#PRICING[@]} < 2)) || bad_input "give --spot or --reserved, once"
  [[ $BUCKET =~ ^([a-z0-9][a-z0-9._-]*)?$ ]] ||
    bad_input "--bucket wants a name such as my-bucket, not '$BUCKET'"
  refuse_bucket_url workdir "$WORKDIR"
  refuse_bucket_url copy-logs "$COPY_LOGS"
  need name zone
  case $VERB in create | babysit) need type && find_runtime ;; esac
  case $VERB in setup | babysit) need repo ref ;; esac
  case $VERB in run | babysit)
    ((${#TRAIN_ARGS[@]})) || bad_input "$VERB needs training arguments after a --"
    ;;
  esac
  if ((${#TRAIN_ARGS[@]})); then
    check_training
  fi
}

# $1: a flag; $2: its value.
refuse_bucket_url() {
  [[ $2 != gs:* ]] || bad_input "--$1 wants a path, not '$2'; mount the bucket with --bucket and" \
    "give a path below $MOUNT_POINT, see docs/launch.md"
}

check_training() {
  local arg
  case $VERB in
    create) need repo ref workdir ;;
    run | babysit) need workdir ;;
    *) bad_input "$VERB takes no training arguments" ;;
  esac
  for arg in "${TRAIN_ARGS[@]}"; do
    [[ $arg != --config.workdir* ]] || bad_input "give the workdir with --workdir, not with '$arg'"
  done
  TRAIN_ARGS+=("--config.workdir=$WORKDIR")
}

# --- calling gcloud ---

# Words as a shell would have to read them.
quote() {
  local quoted
  printf -v quoted '%q ' "$@"
  printf '%s' "${quoted% }"
}

# Prints a command so that it can be pasted; words that need no quotes get none.
show() {
  local word line=
  for word; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word=${word@Q}
    line+="$word "
  done
  printf '%s\n' "${line% }"
}

tpus() {
  if [[ $DRY_RUN == yes ]]; then
    show gcloud compute tpus "$@"
  else
    gcloud compute tpus "$@"
  fi
}

# $1: seconds; $2: why.
pause() {
  if [[ $DRY_RUN == no ]]; then
    say "$2 in $1 s"
    sleep "$1"
  fi
}

# $1: which hosts; $2: what their shells run.
on_hosts() {
  tpus tpu-vm ssh "$NAME" "${WHERE[@]}" --worker="$1" --quiet "${SSH_FLAGS[@]}" --command="$2"
}

DRY_STATE=MISSING # what a dry run takes the answer to be

# Sets STATE to gcloud's answer, to MISSING, or to UNKNOWN if the question failed.
read_state() {
  local errors
  local describe=(queued-resources describe "$NAME" "${WHERE[@]}" "--format=value(state.state)")
  if [[ $DRY_RUN == yes ]]; then
    tpus "${describe[@]}"
    STATE=$DRY_STATE
    return
  fi
  errors=$(mktemp)
  if STATE=$(tpus "${describe[@]}" 2> "$errors"); then
    STATE=${STATE:-UNKNOWN}
  elif grep -q NOT_FOUND "$errors"; then
    STATE=MISSING
  else
    STATE=UNKNOWN
    cat "$errors" >&2
  fi
  rm -f "$errors"
}

request_tpu() {
  local flags=(--node-id="$NAME" "${WHERE[@]}" --accelerator-type="$TYPE"
    --runtime-version="$RUNTIME" "${PRICING[@]}" "${CREATE_FLAGS[@]}")
  # Under babysit the command comes over ssh, not with the boot.
  if [[ $VERB == create ]] && ((${#TRAIN_ARGS[@]})); then
    flags+=("--metadata=$(startup_metadata)")
    flags+=("--metadata-from-file=startup-script=$HERE/tpu_startup.sh")
  fi
  tpus queued-resources create "$NAME" "${flags[@]}" || return
  DRY_STATE=ACTIVE
  NEEDS_SETUP=yes
}

# Settings for tpu_startup.sh. ^DELIMITER^ replaces gcloud's comma; quoted words hold no newline.
startup_metadata() {
  local newline=$'\n'
  printf '%s' "^$newline^ssjax-repo=$REPO${newline}ssjax-ref=$REF"
  printf '%s' "${newline}ssjax-args=$(quote "${TRAIN_ARGS[@]}")"
  if ((${#HOST_ENV[@]})); then
    printf '%s' "${newline}ssjax-env=$(quote "${HOST_ENV[@]}")"
  fi
  if [[ -n $BUCKET ]]; then
    printf '%s' "${newline}ssjax-bucket=$BUCKET"
  fi
  if [[ -n $COPY_LOGS ]]; then
    printf '%s' "${newline}ssjax-copy-logs=$COPY_LOGS"
  fi
}

delete_tpu() {
  tpus queued-resources delete "$NAME" "${WHERE[@]}" --force --quiet
}

# Returns when the TPU is active. $1: `recreate` or `keep` one that failed or was preempted.
bring_up() {
  local if_lost=$1 requested=no recreated=no unanswered=0 delay=$POLL started=$SECONDS
  while :; do
    read_state
    case $STATE in
      ACTIVE) return ;;
      MISSING)
        if [[ $requested == no ]]; then
          request_tpu || return
          requested=yes
        fi
        ;;
      FAILED | SUSPENDING | SUSPENDED)
        # A second loss in one go is left to the caller, who counts and backs off.
        if [[ $if_lost == keep || $recreated == yes ]]; then
          say "$NAME is $STATE; delete it and create it again, or use babysit"
          return 1
        fi
        say "$NAME is $STATE: deleting it and asking again"
        delete_tpu || return 1
        request_tpu || return
        requested=yes recreated=yes
        ;;
      UNKNOWN)
        unanswered=$((unanswered + 1))
        if ((unanswered >= MAX_UNANSWERED)); then
          say "gcloud did not say how $NAME is, $unanswered times in a row"
          return 1
        fi
        ;;
    esac
    [[ $STATE == UNKNOWN ]] || unanswered=0
    if ((SECONDS - started >= MAX_WAIT)); then
      say "$NAME is $STATE after $MAX_WAIT seconds; still queued, run create again to wait on"
      return 1
    fi
    pause "$delay" "$NAME is $STATE; looking again"
    delay=$((delay * 2 < MAX_POLL ? delay * 2 : MAX_POLL))
  done
}

# What hosts run before that which needs the bucket; empty without one.
mount_command() {
  [[ -z $BUCKET ]] || printf '%s' "bash launch/tpu_startup.sh mount $BUCKET || exit 1; "
}

set_up_hosts() {
  local repo ref
  repo=$(quote "$REPO")
  ref=$(quote "$REF")
  on_hosts all "set -e; [ -d $HOST_DIR/.git ] || git clone --quiet $repo $HOST_DIR; \
cd $HOST_DIR; git fetch --quiet origin $ref; git checkout --quiet --detach FETCH_HEAD; \
$(mount_command)bash launch/tpu_startup.sh environment"
}

# `follow` starts the trainer, or joins it if it trains already: gcloud itself repeats a command
# after a lost connection.
train_on_hosts() {
  local env train
  env=$(quote PYTHONUNBUFFERED=1 "${HOST_ENV[@]}")
  train=$(quote .venv/bin/python -m ssjax.train "${TRAIN_ARGS[@]}")
  on_hosts all "cd $HOST_DIR || exit 1; $(mount_command)export $env; \
bash launch/tpu_startup.sh follow $train"
}

# --- babysitting ---

NEEDS_SETUP=yes
RUN_STARTED= # empty: the last attempt did not come to training

attempt() {
  RUN_STARTED=
  bring_up recreate || return
  if [[ $NEEDS_SETUP == yes ]]; then
    set_up_hosts || return 1 # whatever the code: the network mends
    NEEDS_SETUP=no
  fi
  RUN_STARTED=$SECONDS
  train_on_hosts
}

babysit() {
  local restarts=0 delay=$BACKOFF code
  trap 'say "interrupted; the TPU is there and may train on"; exit $EXIT_INTERRUPTED' INT TERM
  while :; do
    code=0
    attempt || code=$?
    case $code in
      0) return ;;
      "$EXIT_BAD_INPUT")
        say "bad input: not retried"
        return "$EXIT_BAD_INPUT"
        ;;
      "$EXIT_DAMAGED" | "$EXIT_DIVERGED")
        say "damaged checkpoints or a diverged training, see the log: not retried"
        return "$code"
        ;;
      # After a lost connection it may still train there: the environment is left alone.
      "$EXIT_RESUMABLE" | "$EXIT_LOST_CONNECTION") ;;
      *) NEEDS_SETUP=yes ;;
    esac
    if [[ -n $RUN_STARTED ]] && ((SECONDS - RUN_STARTED >= RESET_AFTER)); then
      restarts=0 delay=$BACKOFF
    fi
    if ((restarts >= MAX_RESTARTS)); then
      say "gave up after $restarts restarts; the last exit code was $code"
      return "$code"
    fi
    restarts=$((restarts + 1))
    pause "$delay" "exit code $code; restart $restarts of $MAX_RESTARTS"
    delay=$((delay * 2 < MAX_BACKOFF ? delay * 2 : MAX_BACKOFF))
  done
}

show_status() {
  read_state
  [[ $DRY_RUN == yes ]] || printf '%s\n' "$STATE"
  [[ $STATE != UNKNOWN ]]
}

# Of the two logs a host may have, that of `run` and that of the boot, the newer one.
show_logs() {
  local follow=
  [[ $FOLLOW == no ]] || follow=' -F'
  on_hosts "$WORKER" \
    "tail -n $TAIL$follow \"\$(ls -t $HOST_LOG $STARTUP_LOG 2>/dev/null | head -n 1)\""
}

# Anchored, so that it finds the trainer and no shell that names it.
stop_training() {
  on_hosts all "pkill -TERM -f '^[.]venv/bin/python -m ssjax[.]train' || echo 'no run here'"
}

main() {
  ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || bad_input "needs bash 4.4 or newer"
  parse "$@"
  check
  WHERE=(--zone="$ZONE")
  [[ -z $PROJECT ]] || WHERE+=(--project="$PROJECT")
  [[ $DRY_RUN == yes ]] || command -v gcloud > /dev/null || bad_input "gcloud is not on PATH"
  case $VERB in
    create) bring_up keep ;;
    setup) set_up_hosts ;;
    run) train_on_hosts ;;
    babysit) babysit ;;
    status) show_status ;;
    logs) show_logs ;;
    stop) stop_training ;;
    delete) delete_tpu ;;
  esac
}

main "$@"
