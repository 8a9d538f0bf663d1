#!/bin/bash
# Runs every fuzz target of the module, one after the other: as often as told
# (10000x) or for as long (30s). Before Go 1.27 a time sometimes ends as a
# failure of its own ("context deadline exceeded", go.dev/issue/75804), so what
# must not fail for nothing counts.
set -euo pipefail
for_each=${1:-100000x}
out=$(mktemp)
trap 'rm -f "$out"' EXIT
grep -rlE '^func Fuzz\w+\(' --include='*_test.go' . | while read -r file; do
	dir=$(dirname "$file")
	grep -oE '^func Fuzz\w+' "$file" | sed 's/func //' | while read -r target; do
		echo "fuzz $dir $target $for_each"
		go test "$dir" -run '^$' -fuzz "^$target\$" -fuzztime "$for_each" -fuzzminimizetime=10x >"$out" 2>&1 </dev/null || { cat "$out"; exit 1; }
	done
done
