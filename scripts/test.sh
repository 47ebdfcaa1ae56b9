#!/bin/sh
# Everything that must hold, closing with "N passed, N failed"; exits with 1 if anything failed. Each test runs once:
# under the race detector where goroutines share memory, else without; tests that count allocations run without it
# everywhere, since it makes sync.Pool forget and so allocates by itself.
set -eu
cd "$(dirname "$0")/.."
GO=${GO:-go}
export PATH="$PATH:/usr/sbin" # where mosquitto is

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passfail=$work/passfail
tally=$work/tally
failed=0
$GO build -o "$passfail" ./scripts/passfail

# check NAME COMMAND...: one check that is no go test. Printing anything is failing, for gofmt's sake.
check() {
	name=$1
	shift
	begin=$(date +%s)
	if "$@" >"$work/out" 2>&1 && ! [ -s "$work/out" ]; then
		echo "ok    $name $(($(date +%s) - begin))s"
		"$passfail" -tally "$tally" -name "$name" -check pass
	else
		cat "$work/out"
		"$passfail" -tally "$tally" -name "$name" -check fail || failed=1
	fi
}

# tests NAME DIR ARGUMENTS...: go test in a folder.
tests() {
	name=$1 dir=$2
	shift 2
	echo "--    $name"
	echo 1 >"$work/status"
	{
		(cd "$dir" && $GO test -json -timeout 12m "$@") 2>&1 && echo 0 >"$work/status" || true
	} | "$passfail" -tally "$tally" -name "$name" && [ "$(cat "$work/status")" = 0 ] || failed=1
	if [ "$(cat "$work/status")" != 0 ] && [ "$(tail -n 1 "$tally" | cut -d' ' -f2)" = 0 ]; then
		"$passfail" -tally "$tally" -name "$name (go test's own exit status)" -check fail || failed=1
	fi
}

# beside NAME DIR ARGUMENTS...: tests, while others run; joined waits for them.
beside() {
	side=$work/beside
	rm -rf "$side"
	mkdir "$side"
	(
		tally=$side/tally work=$side
		tests "$@"
		exit $failed
	) >"$side/out" 2>&1 &
	pid=$!
}
joined() {
	wait $pid || failed=1
	cat "$side/out"
	cat "$side/tally" >>"$tally"
	cat "$side/tally.failed" >>"$tally.failed"
}

gofiles() { find . -name '*.go' -not -path '*/node_modules/*' -not -path '*/testdata/*' -not -path './.git/*'; }
unformatted() { gofiles | xargs gofmt -l; }

check gofmt unformatted
check vet $GO vet ./...
check staticcheck $GO tool staticcheck ./...
check "types on other systems" $GO run ./scripts/elsewhere windows/amd64 darwin/arm64

# Nested modules. The client, whose goroutines share memory:
check "vet ./sdk/client" sh -c "cd sdk/client && $GO vet ./..."
check "staticcheck ./sdk/client" sh -c "$GO build -o '$work/staticcheck' honnef.co/go/tools/cmd/staticcheck && cd sdk/client && '$work/staticcheck' ./..."
tests ./sdk/client sdk/client -race ./...

# Guests' libraries and the functions of the examples, which depend on nothing of the engine.
for mod in $(find . -name go.mod -not -path ./go.mod -not -path ./sdk/client/go.mod -not -path '*/node_modules/*' -not -path '*/testdata/*' | sort); do
	dir=$(dirname "$mod")
	if find "$dir" -name '*_test.go' | grep -q .; then
		check "vet $dir" sh -c "cd $dir && $GO vet ./..."
		tests "$dir" "$dir" ./...
	fi
	check "vet $dir for wasm" sh -c "cd $dir && GOOS=wasip1 GOARCH=wasm $GO vet ./..."
done

# Machine code of functions that cmd/router's tests make is made once, without race detector, for all runs below.
export MILLRACE_TEST_CACHE="$work/functions"
mkdir "$MILLRACE_TEST_CACHE"

# Without goroutines, or driving built programs from outside: without race detector.
plain='/engine/event$|/engine/rules$|/filters$|/scripts/|/examples/|/bench$|/cmd/router/templates$'
outside='/acceptance$'
tests "packages without goroutines, and those that drive programs" . $($GO list ./... | grep -E "$plain")

# The tests that count allocations, wherever they are, told by their names.
counting=$(gofiles | grep '_test\.go$' | grep -v -e '^\./sdk/' -e '^\./examples/' | xargs awk -v misplaced="$work/misplaced" '
	FNR == 1 { name = "" }
	/^func / { name = $2; sub(/\(.*/, "", name) }
	/testing\.AllocsPerRun/ {
		if (name ~ /^Test/) print name
		else print FILENAME ": testing.AllocsPerRun belongs into a test function, not into " name > misplaced
	}' | sort -u | paste -sd'|' -)
touch "$work/misplaced"
check "allocations are counted in tests" cat "$work/misplaced"
if [ -n "$counting" ]; then
	dirs=$(gofiles | grep '_test\.go$' | xargs grep -lE "^func ($counting)\(" | xargs -n1 dirname | sort -u |
		grep -v -e '^\./sdk/' -e '^\./examples/' -e '^\./engine/event$' -e '^\./filters$')
	[ -z "$dirs" ] || tests "allocations" . -run "^($counting)\$" $dirs
fi

# Guests are machine code, which the race detector does not see and its runtime slows down several times. Packages
# whose tests spend their time there run without it, but for the tests in which goroutines share the host. So do, in the
# other packages, tests whose time goes into building functions, starting programs and reading source, and tests that
# take many seeds or faults one after the other: their neighbours show races over the same code.
guests='/plugins$|/plugins/abi|/plugins/abitest$|/plugins/js$|/plugins/meter$'
sharing='Pool|Share|Turns|Idle|Beside|Context|Concurren|Race|Close|Collect|Stage|Stress'
router='Tutorial|Script|Cookbook|RollbackBringsModulesBack|PushedFunctionWaitsForItsVersion|QuickstartRules|Formatted|Arrows|RulesTestsRunAsInProduction|ScriptsOverHTTP|RequestResponseExample|RecipesOfSources|Canaries|OneDialer|BackupNamesAreBounded|SemanticsNameTheirProofs|SecurityNamesItsProofs'
engine='CounterThroughPowerCuts|PoisonOfEveryKeyIsIsolated|StateComesAndGoes|StepsAgainstAModel|QuickstartFunction|ConservationOfLongScripts|RedriveThroughPowerCuts|ReplayThroughPowerCuts|HistoryAndRollback|NoHerd'
store='Crash|FlippedBit|TornLog|RingGivesItsSpaceBack'
whole="Test($router|$engine|$store)" begin='Test(BacktestOf|BacktestCounts|BacktestSays|ReusedTrial|Trial|Explain[A-Z]|CollectModules)'
singly="^$whole\$|^$begin"
dirs=$(gofiles | grep '_test\.go$' | xargs grep -lE "^func ($whole\(|$begin)" | xargs -n1 dirname | sort -u | grep -v -e '^\./sdk/' -e '^\./examples/')
beside "functions" . -skip "^(${counting:-none})\$" $($GO list ./... | grep -E "$guests")
tests "programs, seeds and faults, one after the other" . -run "$singly" $($GO list $dirs | grep -vE "$plain|$outside|$guests")
joined
# The binary driven from outside waits most of its time.
beside "the binary, from outside" . $($GO list ./... | grep -E "$outside")
tests "functions, race detector" . -race -run "$sharing" $($GO list ./... | grep -E '/plugins$|/plugins/abi/')
tests "race detector" . -race -skip "^(${counting:-none})\$|$singly" $($GO list ./... | grep -vE "$plain|$outside|$guests")
joined

"$passfail" -tally "$tally" -sum || failed=1
exit $failed
