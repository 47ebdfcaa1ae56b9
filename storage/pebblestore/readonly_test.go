package pebblestore

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
	"github.com/millrace/millrace/storage/storetest"
)

// content is every file of a directory but those of the lock.
func content(t *testing.T, fs vfs.FS, dir string, all map[string][]byte) map[string][]byte {
	t.Helper()
	names, err := fs.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		path := fs.PathJoin(dir, name)
		info, err := fs.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.IsDir() {
			content(t, fs, path, all)
			continue
		}
		if name == "LOCK" || name == "pid" {
			continue
		}
		if all[path], err = readFile(fs, path); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// TestReadOnly: all that was acknowledged is there, nothing can be changed, and no file is.
func TestReadOnly(t *testing.T) {
	fs := vfs.NewMem()
	s, err := Open(t.Context(), Options{Dir: "data", FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	id := storage.LogID{Topic: 1}
	if _, err := s.OpenLog(t.Context(), id, storage.LogOptions{Bytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	var want []string
	for i := range 100 {
		e := &event.Event{ID: fmt.Sprint(i), Source: "/s", Type: "t", Data: []byte("{}")}
		b := &storage.Batch{Appends: []storage.Append{{Log: id, Entries: []storage.Entry{{Event: e}}}}, Ops: []storage.Op{{Table: 3, Key: []byte("k"), Value: []byte(e.ID)}}}
		if err := s.Commit(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		want = append(want, e.ID)
	}
	if _, err := openReadOnly(t.Context(), fs, "data"); err == nil {
		t.Error("a directory that is open was opened for reading")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	before := content(t, fs, "data", map[string][]byte{})

	r, err := openReadOnly(t.Context(), fs, "data")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Options{Dir: "data", FS: fs}); err == nil {
		t.Error("a router starts while the directory is being read")
	}
	log, err := r.OpenLog(t.Context(), id, storage.LogOptions{Bytes: 1})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	if err := storetest.ReadAll(t.Context(), log, 0, func(rec event.Record) { got = append(got, rec.Attr(event.TagID)) }); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Errorf("%d events, want %d", len(got), len(want))
	}
	if v, err := r.Load(t.Context(), 3, []byte("k")); err != nil || string(v) != "99" {
		t.Errorf("%q, %v", v, err)
	}
	for what, err := range map[string]error{
		"commit": r.Commit(t.Context(), &storage.Batch{}), "drop": r.DropLog(t.Context(), id), "trim": log.Trim(t.Context(), 50),
	} {
		if !errors.Is(err, event.ErrUnavailable) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := r.OpenLog(t.Context(), storage.LogID{Topic: 2}, storage.LogOptions{Bytes: 1}); !errors.Is(err, event.ErrNotFound) {
		t.Errorf("a log that is not there: %v", err)
	}
	if err := errors.Join(r.Close(), r.Close()); err != nil {
		t.Error(err)
	}
	after := content(t, fs, "data", map[string][]byte{})
	if len(after) != len(before) {
		t.Errorf("%d files, before %d", len(after), len(before))
	}
	for name, b := range before {
		if !bytes.Equal(b, after[name]) {
			t.Errorf("%s changed", name)
		}
	}
	if _, err := openReadOnly(t.Context(), fs, "elsewhere"); err == nil {
		t.Error("a directory that is none was opened")
	}
}
