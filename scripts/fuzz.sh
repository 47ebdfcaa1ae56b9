#!/bin/sh
# fuzz.sh TIME: every fuzz target of this module and of the nested ones, one after another.
set -eu
cd "$(dirname "$0")/.."
GO=${GO:-go}
time=$1
failed=0
for file in $(grep -rlE '^func Fuzz[A-Z]' --include='*_test.go' . | grep -v node_modules | sort); do
	for target in $(sed -nE 's/^func (Fuzz[A-Za-z0-9_]+)\(.*/\1/p' "$file"); do
		echo "== $(dirname "$file") $target"
		(cd "$(dirname "$file")" && $GO test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 100x .) || failed=1
	done
done
exit $failed
