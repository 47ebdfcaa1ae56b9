package main

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"net/http"
	"path"
	"sync/atomic"
	"testing"
)

// An export ends where its topic ended when it began, though its filter takes nothing there, a partition is empty, and others
// publish without end.
func TestExportOfABusyTopicEnds(t *testing.T) {
	var pages atomic.Uint64
	url := serveHandler(t, func(w http.ResponseWriter, r *http.Request) {
		if path.Base(r.URL.Path) != "events" {
			fmt.Fprint(w, `{"state":{"partitions":[{"next":3},{"next":0},{"next":20000}]}}`)
			return
		}
		n := pages.Add(1)
		if n > 9 {
			w.WriteHeader(http.StatusConflict)
			return
		}
		cursor := binary.AppendUvarint([]byte{7, 3, byte(3 + n), 0}, 10_000*n)
		fmt.Fprintf(w, `{"events":[],"next":%q}`, base64.RawURLEncoding.EncodeToString(cursor))
	})
	code, stdout, stderr := runAt(t, url, "export", "orders", "--filter", "data.total > 5")
	if code != 0 || stdout != "" || pages.Load() != 2 {
		t.Errorf("exit %d after %d pages: %s%s; want 2 pages, the second ends behind the last partition's end", code, pages.Load(), stdout, stderr)
	}
}
