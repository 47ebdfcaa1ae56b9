#!/bin/sh
# soak.sh ROUTER TIME: rounds of end-to-end load on one router for TIME (seconds, or with s, m, h). Fails when a round
# loses an event, or when the router's memory after the last round is over 1.5 times that after the second.
set -eu
router=$1
case $2 in
*h) seconds=$((${2%h} * 3600)) ;;
*m) seconds=$((${2%m} * 60)) ;;
*) seconds=${2%s} ;;
esac
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
