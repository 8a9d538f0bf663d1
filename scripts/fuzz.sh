#!/bin/bash
# Runs every fuzz target of the module for the time given, one after the other.
set -euo pipefail
for_each=${1:-5s}
grep -rlE '^func Fuzz\w+\(' --include='*_test.go' . | while read -r file; do
	dir=$(dirname "$file")
	grep -oE '^func Fuzz\w+' "$file" | sed 's/func //' | while read -r target; do
		echo "fuzz $dir $target $for_each"
		go test "$dir" -run '^$' -fuzz "^$target\$" -fuzztime "$for_each" -fuzzminimizetime=10x >/tmp/fuzz.$$ 2>&1 </dev/null || { cat /tmp/fuzz.$$; rm -f /tmp/fuzz.$$; exit 1; }
		rm -f /tmp/fuzz.$$
	done
done
