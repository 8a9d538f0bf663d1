#!/bin/bash
# What CI runs: race tests with none of the listed ones skipped, the short suite
# of the lab, the API against its own document, fuzz smoke, lint. Prints how long
# it took and whether the caches were warm.
set -euo pipefail
began=$SECONDS
warm=warm
[ -e .cache/bin/golangci-lint ] || warm=cold

CGO_ENABLED=0 go build ./...
echo "== go test -race"
go test -race -timeout 20m -json ./... | go run ./test/mustrun test/must-run.txt
echo "== lab"
go run ./test/lab suite
echo "== the API against its document"
scripts/schemathesis.sh
echo "== fuzz smoke"
scripts/fuzz.sh 10000x
echo "== lint"
make --no-print-directory lint
echo "== passed in $((SECONDS - began)) s, $warm caches"
