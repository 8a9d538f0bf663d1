#!/bin/sh
# Runs a command in a sandbox, shows its output and exits as it did:
# run.sh COMMAND [ARG…]. TARTARUS_URL and TARTARUS_TOKEN say where.
set -eu
call() { printf 'Authorization: Bearer %s\n' "$TARTARUS_TOKEN" | curl -sS --fail-with-body -H @- "$@"; }
request=$(jq -cn '{command: $ARGS.positional}' --args -- "$@")
record=$(call --json "$request" "$TARTARUS_URL/sandbox/run?wait=300s") || { echo "$record" >&2; exit 125; }
call -H 'Accept: text/plain' "$TARTARUS_URL/sandbox/$(echo "$record" | jq -r .id)/logs"
exit "$(echo "$record" | jq '.exit.code // 125')"
