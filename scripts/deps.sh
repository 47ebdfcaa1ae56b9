#!/bin/sh
# Installs what the tests need and this machine lacks: Debian packages as root, npm packages below scripts/npm.
# With "bench" as argument also what the measurements are held against.
set -eu
cd "$(dirname "$0")/.."

missing=
want() { # want PACKAGE PROBE: PROBE is a program, or a file if it begins with /
	case $2 in
	/*) [ -e "$2" ] || missing="$missing $1" ;;
	*) command -v "$2" >/dev/null 2>&1 || missing="$missing $1" ;;
	esac
}
want gcc gcc # the race detector needs cgo
want libc6-dev /usr/include/stdlib.h
want openssl openssl
want curl curl
want nodejs node
want npm npm
want mosquitto /usr/sbin/mosquitto
want mosquitto-clients mosquitto_sub
want clang-19 clang-19
want lld-19 wasm-ld-19
want wasi-libc /usr/include/wasm32-wasi/stdlib.h
want libclang-rt-19-dev-wasm32 /usr/lib/llvm-19/lib/clang/19/lib/wasi/libclang_rt.builtins-wasm32.a
want wabt wat2wasm
want binaryen wasm-opt
want rustc /usr/bin/rustc # Debian's own, since it has the WASM target below and rustup's may lack it
want cargo /usr/bin/cargo
want libstd-rust-dev-wasm32 /usr/lib/rustlib/wasm32-unknown-unknown/lib
want lld-14 rust-lld # the linker of that rustc: a later one takes its libraries' metadata for a fault
[ "${1-}" != bench ] || want redis-server redis-server

if [ -n "$missing" ]; then
	if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
		echo "The tests need these Debian packages:$missing" >&2
		echo "Install them (apt-get install$missing) or their like and run make again." >&2
		exit 1
	fi
	echo "installing$missing"
	log=$(mktemp)
	trap 'rm -f "$log"' EXIT
	# The lists may be old or absent: fetch them once, and only then.
	DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing >"$log" 2>&1 ||
		{ apt-get update >>"$log" 2>&1 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing >>"$log" 2>&1; } ||
		{ cat "$log" >&2; exit 1; }
fi

# npm ci starts from nothing each time: skip it while the lock is the one that was installed.
stamp=scripts/npm/node_modules/.installed
if ! cmp -s scripts/npm/package-lock.json "$stamp"; then
	(cd scripts/npm && npm ci --loglevel=error)
	cp scripts/npm/package-lock.json "$stamp"
fi
