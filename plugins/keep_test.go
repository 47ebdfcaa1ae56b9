package plugins_test

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
	"github.com/millrace/millrace/plugins/abi/native"
)

// variant is a module of its own digest: a custom section tells it from the others.
func variant(n byte) []byte {
	b := guest().bytes()
	return append(b, 0, 3, 1, 'v', n)
}

func TestResolveDigest(t *testing.T) {
	all := []string{
		"sha256:" + strings.Repeat("ab", 32),
		"sha256:abababab" + strings.Repeat("cd", 28),
		"sha256:" + strings.Repeat("12", 32),
	}
	if got, err := plugins.ResolveDigest("sha256:12121212", all); err != nil || got != all[2] {
		t.Errorf("%s, %v", got, err)
	}
	if got, err := plugins.ResolveDigest(all[0], all); err != nil || got != all[0] {
		t.Errorf("%s, %v", got, err)
	}
	for in, want := range map[string]error{
		"sha256:abababab":                    event.ErrInvalid, // two
		"sha256:1212121":                     event.ErrInvalid, // too short
		"sha256:1212121G":                    event.ErrInvalid,
		"12121212":                           event.ErrInvalid,
		"sha256:" + strings.Repeat("12", 33): event.ErrInvalid,
		"sha256:34343434":                    event.ErrNotFound,
	} {
		if got, err := plugins.ResolveDigest(in, all); !errors.Is(err, want) {
			t.Errorf("%s: %q, %v; want %v", in, got, err, want)
		}
	}
}

// Whatever is named stays, whatever was put a moment ago stays, the rest goes and can be put again.
func TestCollectRemovesOnlyWhatNobodyNames(t *testing.T) {
	dir := t.TempDir()
	h, err := plugins.NewHost(t.Context(), plugins.Options{ABIs: []plugins.ABI{native.ABI{}}, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close(t.Context())
	var all []string
	for n := range byte(12) {
		d, err := h.Put(t.Context(), variant(n))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, d)
	}
	if err := os.WriteFile(filepath.Join(dir, "modules", "README"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	now := time.Now()
	for range 50 {
		named, old := map[string]bool{}, map[string]bool{}
		var want []string
		for n, d := range all {
			if !h.Has(d) {
				if _, err := h.Put(t.Context(), variant(byte(n))); err != nil {
					t.Fatal(err)
				}
			}
			named[d], old[d] = rng.IntN(2) == 0, rng.IntN(2) == 0
			when := now
			if old[d] {
				when = now.Add(-2 * time.Hour)
			}
			if err := os.Chtimes(filepath.Join(dir, "modules", d[7:]+".wasm"), when, when); err != nil {
				t.Fatal(err)
			}
			if old[d] && rng.IntN(4) == 0 { // put again: as good as new
				if _, err := h.Put(t.Context(), variant(byte(n))); err != nil {
					t.Fatal(err)
				}
				old[d] = false
			}
			if old[d] && !named[d] {
				want = append(want, d)
			}
		}
		gone, err := h.Collect(t.Context(), now.Add(-time.Hour), func(d string) bool { return named[d] })
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(want)
		slices.Sort(gone)
		if !slices.Equal(gone, want) {
			t.Fatalf("removed %v, want %v", gone, want)
		}
		for _, d := range all {
			if h.Has(d) == slices.Contains(gone, d) {
				t.Fatalf("%s: kept %v", d, h.Has(d))
			}
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "modules", "README")); err != nil {
		t.Errorf("a file that is no module: %v", err)
	}
}
