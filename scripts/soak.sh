#!/bin/sh
# soak.sh ROUTER TIME: the long forms of what the tests do shortly, and says how far it is: random scripts against the
# model of delivery for TIME (seconds, or with s, m, h), 200 cycles of kill -9, two minutes of reloads, load with bad receivers and
# readers for TIME; then rounds of end-to-end load on one router for TIME. Fails when a test fails, when a round loses
# an event, or when the router's memory after the last round is over 1.5 times that after the second.
set -eu
router=$1
GO=${GO:-go}
case $2 in
*h) seconds=$((${2%h} * 3600)) ;;
*m) seconds=$((${2%m} * 60)) ;;
*) seconds=${2%s} ;;
esac
minutes=$(((seconds + 59) / 60))
MILLRACE_LONG=1 MILLRACE_SOAK=$minutes $GO test -count=1 -v -timeout $((minutes + 10))m -run 'TestConservation' ./engine
MILLRACE_LONG=1 MILLRACE_SOAK=$minutes $GO test -count=1 -v -timeout $((minutes + 60))m -run 'TestKill|TestReloadUnderLoad|TestSoak' ./acceptance
work=$(mktemp -d)
"$router" serve --data "$work/data" --listen 127.0.0.1:0 --memory 400MiB --allow-private-targets >"$work/out" 2>"$work/log" &
pid=$!
trap 'kill $pid 2>/dev/null || true; wait $pid 2>/dev/null || true; rm -rf "$work"' EXIT
url=
for _ in $(seq 100); do
	url=$(sed -n 's/^listen  *//p' "$work/out")
	[ -z "$url" ] || break
	sleep 0.1
done
[ -n "$url" ] || { cat "$work/out" "$work/log" >&2; exit 1; }
rss() { awk '/^VmRSS:/ { print $2 }' "/proc/$pid/status"; }
round=0 early=0
end=$(($(date +%s) + seconds))
while [ "$(date +%s)" -lt "$end" ] || [ $round -lt 3 ]; do
	"$router" bench e2e --server "$url" --messages 50000
	round=$((round + 1))
	now=$(rss)
	echo "round $round: $((now / 1024)) MiB resident"
	[ $round != 2 ] || early=$now
done
if [ "$now" -gt $((early * 3 / 2)) ]; then
	echo "memory grew from $((early / 1024)) to $((now / 1024)) MiB" >&2
	exit 1
fi
