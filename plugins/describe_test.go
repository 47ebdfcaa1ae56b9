package plugins_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

// A description holds what could be read, also of what is refused.
func TestDescribe(t *testing.T) {
	h := newHost(t, plugins.Options{})
	ctx := context.Background()
	def := event.Function{Name: "f"}
	good := guest().with(4, vec([]byte{0x70, 1, 3, 9})).with(5, vec([]byte{1, 2, 7})).bytes()
	d, err := h.Describe(ctx, good, def)
	if err != nil {
		t.Fatal(err)
	}
	if d.ABI == nil || d.Bytes != len(good) || !strings.HasPrefix(d.Digest, "sha256:") || d.Funcs != 3 || d.Compile <= 0 || d.Instantiate <= 0 {
		t.Errorf("%+v", d)
	}
	if d.Memory == nil || *d.Memory != (plugins.Bounds{Min: 2, Max: 7, Bounded: true}) || d.Used != 2<<16 {
		t.Errorf("memory %+v, %d bytes in use; want 2 to 7 pages, 2 in use", d.Memory, d.Used)
	}
	if !slices.Equal(d.Tables, []plugins.Bounds{{Min: 3, Max: 9, Bounded: true}}) || len(d.Exports) != 4 || len(d.Imports) != 0 {
		t.Errorf("%+v", d)
	}

	def.Limits.Memory = 1 << 16
	d, err = h.Describe(ctx, good, def)
	if !errors.Is(err, event.ErrInvalid) || !strings.Contains(err.Error(), "limits.memory") || d.Memory == nil {
		t.Errorf("2 pages under a limit of 1: %v, %+v", err, d)
	}
	stranger := guest()
	stranger[7] = vec(export("_start", 0, 2))
	d, err = h.Describe(ctx, stranger.bytes(), def)
	if err == nil || d.ABI != nil || len(d.Exports) != 1 || d.Exports[0].Name != "_start" {
		t.Errorf("another convention: %v, %+v", err, d)
	}
	d, err = h.Describe(ctx, []byte("\x7fELF"), def)
	if err == nil || d.Bytes != 4 || d.Digest == "" || d.Memory != nil {
		t.Errorf("no module: %v, %+v", err, d)
	}
}
