#!/usr/bin/env bash
# A stand-in for `gcloud compute tpus`: logs its arguments, answers from files.
#
# The directory STAND_IN/answers holds `states` for describe (MISSING and ERROR fail as gcloud
# does) and exit codes for `create`, `delete`, `setup` and `train`: one a line, each used once. A
# call that nobody expected, or that has no answer, is written to `unexpected` and fails.
set -euo pipefail

# $1: why.
refuse() {
  echo "$1: $CALL" >> "$STAND_IN/unexpected"
  exit 99
}

# Takes the next answer of a kind.
answer() {
  local file=$STAND_IN/answers/$1
  [[ -s $file ]] || refuse "no answer for $1"
  read -r ANSWER < "$file"
  sed -i 1d "$file"
}

describe() {
  local error='ERROR: (gcloud.compute.tpus.queued-resources.describe)'
  answer states
  case $ANSWER in
    MISSING) echo "$error NOT_FOUND: Resource was not found" >&2 && exit 1 ;;
    ERROR) echo "$error UNAVAILABLE: try again" >&2 && exit 1 ;;
  esac
  echo "$ANSWER"
}

# Answers for what the command, always the last flag, does on the hosts.
ssh() {
  case ${CALL##*--command=} in
    *' -m ssjax.train '*) answer train ;;
    *'tpu_startup.sh environment') answer setup ;;
    'tail '* | 'pkill '*) ANSWER=0 ;;
    *) refuse 'unknown command' ;;
  esac
  exit "$ANSWER"
}

CALL=$*
# Arguments may hold newlines.
printf '%s\0' "$@" >> "$STAND_IN/calls"
printf '\x1e' >> "$STAND_IN/calls"
case $CALL in
  'compute tpus queued-resources describe '*) describe ;;
  'compute tpus queued-resources create '* | 'compute tpus queued-resources delete '*)
    answer "$4"
    exit "$ANSWER"
    ;;
  'compute tpus tpu-vm ssh '*) ssh ;;
  *) refuse 'unknown call' ;;
esac
