#!/bin/bash
# Holds a running server to its own document: that GET /openapi.json is OpenAPI
# 3, and with schemathesis that whatever is asked, by the document or against
# it, is answered as the document says and never by an error of the server.
# `bin/tartarus up` runs as it is, with real VMs, few by its policy.
#
#   scripts/schemathesis.sh [FLAG…]   flags go to schemathesis, as --seed 7
set -euo pipefail
cd "$(dirname "$0")/.."

cache=$PWD/.cache/python
venv=$cache/$(sha256sum test/contract/requirements.txt | cut -c1-16)
if [ ! -e "$venv/complete" ]; then
	echo "schemathesis: installing it into $venv" >&2
	mkdir -p "$cache"
	rm -rf "$venv"
	python3 -m venv "$venv"
	"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary=:all: -r test/contract/requirements.txt
	touch "$venv/complete"
fi

top=$(mktemp -d /tmp/tartarus-contract-XXXXXX)
server=
finish() {
	if [ -n "$server" ]; then
		kill "$server" 2>/dev/null || true
		wait "$server" || { echo "schemathesis: the server ended with $?" >&2; cat "$top/log" >&2; }
	fi
	rm -rf "$top"
}
trap finish EXIT
trap 'exit 130' INT TERM

# What the end-to-end tests prepare, too: the kernel is a download.
prepared=${XDG_CACHE_HOME:-$HOME/.cache}/tartarus/e2e-base
mkdir -p -m 0700 "$(dirname "$prepared")"
bin/tartarus setup --state "$prepared" --template base 2>"$top/setup" || { cat "$top/setup" >&2; exit 1; }
cp -a --sparse=always "$prepared" "$top/state"

bin/tartarus up --state "$top/state" --policy test/contract/policy.yaml --listen 127.0.0.1:0 2>"$top/log" &
server=$!
for _ in $(seq 600); do
	url=$(sed -n 's/^tartarus: listening on \(http:.*\)/\1/p' "$top/log")
	[ -z "$url" ] || break
	kill -0 "$server" || { cat "$top/log" >&2; exit 1; }
	sleep 0.1
done
[ -n "$url" ] || { echo "schemathesis: the server is not up after a minute" >&2; cat "$top/log" >&2; exit 1; }

token=$(cat "$top/state/admin-token")
TOKEN_ID=$(bin/tartarus --state "$top/state" token list -o json | python3 -c 'import json, sys; print(json.load(sys.stdin)["tokens"][0]["id"])')
export TOKEN_ID
curl -sS --fail -H @- "$url/openapi.json" <<<"Authorization: Bearer $token" >"$top/openapi.json"
"$venv/bin/openapi-spec-validator" "$top/openapi.json"
known=$PWD/test/contract
cd "$top" # where it leaves a folder
SCHEMATHESIS_HOOKS=hooks PYTHONPATH=$known PYTHONDONTWRITEBYTECODE=1 "$venv/bin/schemathesis" \
	--config-file "$known/schemathesis.toml" \
	run "$url/openapi.json" -H "Authorization: Bearer $token" --no-color \
	--max-time 60 --request-timeout 60 --seed 20261125 "$@"
