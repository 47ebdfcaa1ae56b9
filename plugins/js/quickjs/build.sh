#!/bin/sh
# Builds quickjs.wasm, the engine of functions in JavaScript: QuickJS as Debian keeps its source, engine.c and prelude.js.
# Needs clang-19, lld-19, wasi-libc, libclang-rt-19-dev-wasm32 and xz. `build.sh OUT` writes to OUT. The source is the file that
# QUICKJS_SOURCE names, quickjs_2025.04.26.orig.tar.xz of Debian's source package, or what apt-get fetches of it.
set -eu
cd "$(dirname "$0")"
out=${1:-quickjs.wasm}
case $out in /*) ;; *) out=$PWD/$out ;; esac
version=2025.04.26
sum=ec81da5b3249ed648dbc7df4a1654988910e66a118d9b71cb63534216efcfbbe
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
if [ -n "${QUICKJS_SOURCE-}" ]; then
	cp "$QUICKJS_SOURCE" "$dir/source.tar.xz"
else
	(cd "$dir" && apt-get source --download-only "quickjs=$version-1" >/dev/null) ||
		{ echo "Name quickjs_$version.orig.tar.xz with QUICKJS_SOURCE, or let apt-get know of deb-src lines that have it." >&2; exit 1; }
	mv "$dir/quickjs_$version.orig.tar.xz" "$dir/source.tar.xz"
fi
echo "$sum  $dir/source.tar.xz" | sha256sum -c --quiet
tar -xJf "$dir/source.tar.xz" -C "$dir" --strip-components 1 --one-top-level=source
src=$dir/source
# A guest has one thread, and no setjmp (which one file names and does not use).
sed -i 's/^#define CONFIG_ATOMICS$//' "$src/quickjs.c"
sed -i '/<setjmp.h>/d' "$src/dtoa.c"
# Without -O the linker's driver leaves the module alone: what else is installed must not change it.
for f in engine.c "$src/quickjs.c" "$src/libregexp.c" "$src/libunicode.c" "$src/cutils.c" "$src/dtoa.c"; do
	clang-19 --target=wasm32-wasi -O2 -mbulk-memory -DNDEBUG -D_GNU_SOURCE -include malloc.h -DCONFIG_VERSION="\"$version\"" \
		-Wno-c23-extensions -Wno-sign-compare -ffile-prefix-map="$src"=quickjs -I"$src" -I../../../sdk/c -c -o "$dir/$(basename "$f" .c).o" "$f" &
done
wait
# The stack lies below everything: one that is too deep traps instead of writing over data.
clang-19 --target=wasm32-wasi -mexec-model=reactor -Wl,--strip-all -Wl,--stack-first -Wl,-z,stack-size=1048576 -o "$out" \
	"$dir/engine.o" "$dir/quickjs.o" "$dir/libregexp.o" "$dir/libunicode.o" "$dir/cutils.o" "$dir/dtoa.o"
# What it was made of, which a test compares.
[ "$out" != "$PWD/quickjs.wasm" ] || sha256sum build.sh engine.c prelude.js quickjs.wasm ../../../sdk/c/millrace.h ../../../sdk/c/millrace_json.h >SUMS
