package main

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// Behind a 503 an event may be stored: lines are sent again under the ids that they had, also by --resume; rows, which have none,
// are not.
func TestImportRepeatsOnlyWhatHasIDs(t *testing.T) {
	var mu sync.Mutex
	var bodies []string
	status := http.StatusBadGateway
	url := serveHandler(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		b, _ := io.ReadAll(r.Body)
		bodies = append(bodies, string(b))
		w.WriteHeader(status)
	})
	dir := t.TempDir()
	rows, lines := filepath.Join(dir, "a.csv"), filepath.Join(dir, "a.ndjson")
	for name, text := range map[string]string{rows: "total\n7\n", lines: "{\"total\":7}\n"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if code, _, stderr := runAt(t, url, "import", "orders", lines); code != exitFailed || !strings.Contains(stderr, "--resume") {
		t.Errorf("exit %d: %s; want to be told of --resume", code, stderr)
	}
	status = http.StatusOK
	for _, args := range [][]string{{"import", "orders", lines, "--resume"}, {"import", "orders", lines}} {
		if code, _, stderr := runAt(t, url, args...); code != 0 {
			t.Errorf("exit %d: %s", code, stderr)
		}
	}
	if len(bodies) != 3 || bodies[0] != bodies[1] || bodies[0] == bodies[2] {
		t.Errorf("sent %q; want the same id in the second, another in the third", bodies)
	}
	status = http.StatusServiceUnavailable
	if code, _, stderr := runAt(t, url, "import", "orders", rows); code != exitFailed || len(bodies) != 4 || !strings.Contains(stderr, "not known") {
		t.Errorf("rows: exit %d after %d requests: %s", code, len(bodies), stderr)
	}
}
