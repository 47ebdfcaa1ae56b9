package native_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

const rustSDK = "../../../sdk/rust"

// debian is an environment in which Debian's Rust comes first: it has the target that rustup's may lack.
func debian() []string {
	return append(os.Environ(), "PATH=/usr/bin:"+os.Getenv("PATH"), "CARGO_TARGET_DIR="+filepath.Join(built.dir, "cargo"))
}

// rustGuest builds a crate as its README says.
func rustGuest(t testing.TB, dir string) []byte {
	t.Helper()
	return guestOf(t, dir, func(out string) *exec.Cmd {
		c := exec.Command("sh", "-c", "cargo build --locked --offline --quiet --release --target wasm32-unknown-unknown && "+
			`cp "$CARGO_TARGET_DIR"/wasm32-unknown-unknown/release/*.wasm "$0"`, out)
		c.Dir, c.Env = dir, debian()
		return c
	})
}

// rustcGuest builds the same without cargo.
func rustcGuest(t testing.TB, source string) []byte {
	t.Helper()
	return guestOf(t, source, func(out string) *exec.Cmd {
		c := exec.Command("sh", "-ec", `
			lib=$(dirname "$0")/libmillrace.rlib
			rustc --edition 2021 -O --crate-name millrace --crate-type rlib --target wasm32-unknown-unknown --cfg 'feature="reply"' -o "$lib" "$1"
			rustc --edition 2021 -O -C panic=abort -C lto -C strip=symbols --crate-type cdylib --target wasm32-unknown-unknown --extern millrace="$lib" -o "$0" "$2"`,
			out, rustSDK+"/src/lib.rs", source)
		c.Env = debian()
		return c
	})
}

func TestEnrichRust(t *testing.T)  { enriches(t, rustGuest(t, rustSDK+"/examples/enrich")) }
func TestEnrichRustc(t *testing.T) { enriches(t, rustcGuest(t, rustSDK+"/examples/enrich/src/lib.rs")) }

// The crate's own tests: the table of scanner cases, the example of its README.
func TestRustSDK(t *testing.T) {
	for _, args := range [][]string{{"test", "--locked", "--offline", "--all-features"}, {"test", "--locked", "--offline", "--test", "table"}} {
		c := exec.Command("cargo", args...)
		c.Path = "/usr/bin/cargo"
		c.Dir, c.Env = rustSDK, debian()
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("cargo %v: %v\n%s", args, err, out)
		}
	}
}
