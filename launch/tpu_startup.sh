#!/usr/bin/env bash
# What one TPU host does by itself. Given to the VM as its startup script, it runs at every boot,
# so a host that was maintained or replaced trains on without anybody's help.
#
#   tpu_startup.sh               fetch the code, build the environment, mount, train, restart
#   tpu_startup.sh environment   only build the environment of the checkout it stands in
#   tpu_startup.sh mount BUCKET  only mount a Cloud Storage bucket
#   tpu_startup.sh follow WORDS  run a command there and show its log, or join the one that runs;
#                                what `launch/tpu_vm.sh run` does on every host
#
# Settings come from SSJAX_ variables, else from the instance metadata that
# `launch/tpu_vm.sh create ... -- ARGUMENTS` writes (SSJAX_ARGS is ssjax-args there).
set -euo pipefail

# Every setting and its default.
read_settings() {
  DIR=${SSJAX_DIR:-/opt/ssjax}               # the checkout
  LOG=${SSJAX_LOG:-/var/log/ssjax-train.log} # of this script and the trainer
  LOCK=${SSJAX_LOCK:-/run/lock/ssjax.lock}   # held while this script trains
  BACKOFF=${SSJAX_BACKOFF:-10}               # seconds before the first restart,
  MAX_BACKOFF=${SSJAX_MAX_BACKOFF:-600}      # doubling up to this
  MAX_RESTARTS=${SSJAX_MAX_RESTARTS:-20}     # restarts in a row
  RESET_AFTER=${SSJAX_RESET_AFTER:-3600}     # training that ran this long clears the count
  REPO=$(setting repo)
  REF=$(setting ref)
  ARGS=$(setting args)           # of ssjax.train, quoted for a shell
  ENVIRONMENT=$(setting env)     # NAME=VALUE words for the trainer, quoted likewise
  BUCKET=$(setting bucket)       # mounted before training; empty: none
  COPY_LOGS=$(setting copy-logs) # directory; empty: the log stays here
}

readonly MOUNT_POINT=/mnt/ssjax # of the bucket; as in tpu_vm.sh
readonly MOUNT_TRIES=5          # of `mount`, with pauses of
readonly MOUNT_PAUSE=10         # seconds

readonly PYTHON_VERSION=3.12
readonly METADATA=http://metadata.google.internal/computeMetadata/v1/instance/attributes
readonly CURL_HTTP_ERROR=22 # of curl --fail: no such attribute

readonly EXIT_BAD_INPUT=2
readonly EXIT_LASTING='2|3|4' # of ssjax.train, never retried: bad input, damaged, diverged
readonly EXIT_BUSY=75
readonly EXIT_STOPPED=143 # before training began

say() {
  printf '%s ssjax startup: %s\n' "$(date -u +%FT%TZ)" "$*"
}

# Prints the variable SSJAX_NAME, else the metadata ssjax-name, else nothing.
setting() {
  local variable=SSJAX_${1^^} value code=0
  variable=${variable//-/_}
  if [[ -n ${!variable+set} ]]; then
    printf '%s' "${!variable}"
    return
  fi
  value=$(curl --fail --silent --retry 5 -H 'Metadata-Flavor: Google' "$METADATA/ssjax-$1") ||
    code=$?
  case $code in
    0) printf '%s' "$value" ;;
    "$CURL_HTTP_ERROR") ;;
    *)
      say "cannot read ssjax-$1 from the metadata server (curl: $code)" >&2
      return 1
      ;;
  esac
}

need() {
  local variable
  for variable; do
    if [[ -z ${!variable} ]]; then
      say "error: no $variable; set SSJAX_$variable or the metadata ssjax-${variable,,}"
      exit "$EXIT_BAD_INPUT"
    fi
  done
}

fetch_code() {
  [[ -d $DIR/.git ]] || git clone --quiet "$REPO" "$DIR"
  git -C "$DIR" fetch --quiet origin "$REF"
  git -C "$DIR" checkout --quiet --detach FETCH_HEAD
}

# Built once, and again when the dependencies changed. The images' own Python is too old; uv
# brings one.
make_environment() {
  local dependencies
  dependencies=$(cksum < pyproject.toml)
  if [[ -f .venv/installed && $(< .venv/installed) == "$dependencies" ]]; then
    return
  fi
  # The variable lets pip install uv beside a system Python that is marked as managed.
  python3 -m uv --version > /dev/null 2>&1 ||
    PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
  [[ -x .venv/bin/python ]] || python3 -m uv venv --quiet --python "$PYTHON_VERSION" .venv
  python3 -m uv pip install --quiet --python .venv/bin/python -e '.[tpu,scores]'
  printf '%s' "$dependencies" > .venv/installed
}

# As Google's guide says; not every TPU image has it.
install_gcsfuse() {
  local apt=https://packages.cloud.google.com/apt key=/usr/share/keyrings/cloud.google.asc
  curl --fail --silent --show-error --retry 5 "$apt/doc/apt-key.gpg" |
    sudo tee "$key" > /dev/null &&
    echo "deb [signed-by=$key] $apt gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null &&
    sudo apt-get update --quiet --quiet &&
    sudo apt-get install --quiet --quiet --yes -o DPkg::Lock::Timeout=300 gcsfuse
}

# Hosts read what the first one just wrote, so no metadata is cached: by default gcsfuse keeps it
# for a minute, on large TPU hosts for ever. Without descriptor 9, because gcsfuse stays and would
# hold the lock.
run_gcsfuse() {
  # What a gcsfuse that died leaves behind.
  if [[ $(LC_ALL=C stat "$MOUNT_POINT" 2>&1) == *"endpoint is not connected"* ]]; then
    sudo umount --lazy "$MOUNT_POINT" || return
  fi
  sudo install -d -o "$(id -u)" -g "$(id -g)" "$MOUNT_POINT" &&
    gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 "$1" "$MOUNT_POINT" 9>&-
}

# $1: a bucket. Does nothing where it is mounted; one try.
mount_bucket() {
  ! mountpoint -q "$MOUNT_POINT" || return 0
  if command -v gcsfuse > /dev/null || install_gcsfuse; then
    ! run_gcsfuse "$1" || return 0
  fi
  say "cannot mount gs://$1 at $MOUNT_POINT"
  return 1
}

mount_patiently() {
  local try
  for ((try = 1; ; try++)); do
    ! mount_bucket "$1" || return 0
    ((try < MOUNT_TRIES)) || return 1
    say "try $((try + 1)) of $MOUNT_TRIES in $MOUNT_PAUSE s"
    sleep "$MOUNT_PAUSE"
  done
}

STOPPING=no  # the host goes down
SIGNALLED=no # since the last look
TRAINER=     # its process id while it runs

stop() {
  STOPPING=yes SIGNALLED=yes
  [[ -z $TRAINER ]] || kill -TERM "$TRAINER" 2> /dev/null || true
}

# Trains once; returns the trainer's exit code. In the background, so that a signal reaches it.
# Descriptor 9 is the lock; the trainer's own children shall not keep it.
train() {
  local code
  local -a args environment
  # Both were written by printf %q.
  eval "args=($ARGS) environment=($ENVIRONMENT)"
  env PYTHONUNBUFFERED=1 "${environment[@]}" \
    .venv/bin/python -m ssjax.train "${args[@]}" 9>&- &
  TRAINER=$!
  # A signal ends a wait early; one that none disturbed brings the trainer's own code.
  while :; do
    SIGNALLED=no code=0
    wait "$TRAINER" || code=$?
    [[ $SIGNALLED == yes ]] || break
  done
  TRAINER=
  return "$code"
}

# A log that cannot be copied never stops a run.
copy_log() {
  [[ -z $COPY_LOGS ]] ||
    { mkdir -p "$COPY_LOGS" && cp "$LOG" "$COPY_LOGS/$(hostname).log"; } ||
    say "the log could not be copied to $COPY_LOGS"
}

# The log is not copied where the mount failed: it would lie below the mount point, hidden by the
# next mount.
mount_and_train() {
  local code=0
  [[ -z $BUCKET ]] || mount_bucket "$BUCKET" || return
  [[ $STOPPING == no ]] || return "$EXIT_STOPPED" # while it mounted
  train || code=$?
  say "exit code $code"
  copy_log
  return "$code"
}

train_until_done() {
  local restarts=0 delay=$BACKOFF started code=$EXIT_STOPPED
  while [[ $STOPPING == no ]]; do
    started=$SECONDS
    code=0
    mount_and_train || code=$?
    if [[ $STOPPING == yes ]] || [[ $code =~ ^(0|$EXIT_LASTING)$ ]]; then
      break
    fi
    if ((SECONDS - started >= RESET_AFTER)); then
      restarts=0 delay=$BACKOFF
    fi
    if ((restarts >= MAX_RESTARTS)); then
      say "gave up after $restarts restarts"
      break
    fi
    restarts=$((restarts + 1))
    say "restart $restarts of $MAX_RESTARTS in $delay s"
    sleep "$delay"
    delay=$((delay * 2 < MAX_BACKOFF ? delay * 2 : MAX_BACKOFF))
  done
  return "$code"
}

boot() {
  export HOME=${HOME:-/root} # start-up scripts have none
  read_settings
  exec >> "$LOG" 2>&1
  exec 9>> "$LOCK"
  flock -n 9 || {
    say "another copy of this script trains here"
    exit "$EXIT_BUSY"
  }
  need REPO REF ARGS
  trap stop TERM INT
  fetch_code
  cd "$DIR"
  make_environment
  train_until_done
}

# The command writes to a file, so that it outlives a lost connection and no dead one can block
# it. Called again with the same words while it runs, this waits and returns the same exit code.
follow() {
  local code=0 log=$HOME/ssjax-train.log
  touch "$log"
  tail --pid=$$ -n 0 -F "$log" &
  trap 'sleep 1; kill $! 2> /dev/null || true' EXIT # a second, for the last lines
  exec >> "$log" 2>&1 9>> .train.lock
  if flock -n 9; then
    rm -f .train.code
    printf '%q ' "$@" > .train.command
    "$@" 9>&- || code=$?
    echo "$code" > .train.code
  elif [[ $(printf '%q ' "$@") == "$(< .train.command)" ]]; then
    say "this run is under way here; showing its log from now on"
    flock 9
    code=$(cat .train.code) || code=1
  else
    say "error: another run is under way here; end it with launch/tpu_vm.sh stop"
    code=$EXIT_BAD_INPUT
  fi
  exit "$code"
}

main() {
  case ${1:-boot} in
    boot) boot ;;
    environment)
      cd "$(dirname "${BASH_SOURCE[0]}")/.."
      make_environment
      ;;
    mount) mount_patiently "$2" ;;
    follow)
      cd "$(dirname "${BASH_SOURCE[0]}")/.."
      follow "${@:2}"
      ;;
    *)
      echo "usage: tpu_startup.sh [environment | mount BUCKET | follow COMMAND...]" >&2
      exit "$EXIT_BAD_INPUT"
      ;;
  esac
}

main "$@"
