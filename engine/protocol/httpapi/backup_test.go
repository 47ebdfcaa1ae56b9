package httpapi

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/event"
)

// fakeBackups is one backup of some zeros.
type fakeBackups struct {
	backupSize int
	backupOpen atomic.Int32
}

func (f *fakeBackups) OpenBackup(context.Context) (Backup, error) {
	if !f.backupOpen.CompareAndSwap(0, 1) {
		return nil, fmt.Errorf("%w: one is under way", event.ErrConflict)
	}
	return fakeBackup{f}, nil
}

type fakeBackup struct{ of *fakeBackups }

func (b fakeBackup) WriteTo(ctx context.Context, w io.Writer) error {
	for range b.of.backupSize {
		if _, err := w.Write(make([]byte, 64<<10)); err != nil || ctx.Err() != nil {
			return err
		}
	}
	return nil
}

func (b fakeBackup) Close() error {
	b.of.backupOpen.Store(0)
	return nil
}

// A backup comes whole, no faster than it may, one at a time, and lets go of what it holds when its client goes.
func TestBackup(t *testing.T) {
	f := newFake()
	f.backupSize = 4
	var log audited
	g, _, reader := keyed(t, access.Options{Token: "t", Audit: log.add}, access.Key{Roles: []string{"reader"}})
	_, base := serve(t, Options{Backend: f, Guard: g})
	auth := []string{"Authorization", "Bearer t"}
	began := time.Now()
	resp, body := do(t, "GET", base+"/v1/backup?rate=1048576", "", auth...)
	if resp.StatusCode != http.StatusOK || len(body) != 256<<10 || resp.Header.Get("Content-Type") != "application/x-tar" {
		t.Fatalf("%d, %d bytes, %v", resp.StatusCode, len(body), resp.Header)
	}
	if took := time.Since(began); took < 240*time.Millisecond {
		t.Errorf("256 KiB at 1 MiB a second took %s", took)
	}
	if resp, _ := do(t, "HEAD", base+"/v1/backup", "", auth...); resp.StatusCode != http.StatusOK || f.backupOpen.Load() != 0 {
		t.Errorf("HEAD: %d, %d open", resp.StatusCode, f.backupOpen.Load())
	}
	for _, rate := range []string{"0", "-1", "65535", "1e9", "fast"} {
		if resp, body := do(t, "GET", base+"/v1/backup?rate="+rate, "", auth...); resp.StatusCode != http.StatusBadRequest || !strings.Contains(body, "bytes a second") {
			t.Errorf("rate %s: %d %s", rate, resp.StatusCode, body)
		}
	}
	if resp, _ := do(t, "GET", base+"/v1/backup", ""); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("a stranger: %d", resp.StatusCode)
	}
	if resp, _ := do(t, "GET", base+"/v1/backup", "", "Authorization", "Bearer "+reader); resp.StatusCode != http.StatusForbidden {
		t.Errorf("a reader: %d", resp.StatusCode)
	}
	taken := 0
	for _, e := range log.entries() {
		if e.Outcome != access.Taken {
			continue
		}
		if taken++; e.Principal != "token" || e.Kind != "backup" || e.Addr != "127.0.0.1" {
			t.Errorf("in the audit log: %+v", e)
		}
	}
	if taken != 1 {
		t.Errorf("%d backups in the audit log; one was taken: %+v", taken, log.entries())
	}
	f.backupSize = 1 << 20
	req, err := http.NewRequestWithContext(t.Context(), "GET", base+"/v1/backup?rate=65536", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set(auth[0], auth[1])
	slow, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if resp, body := do(t, "GET", base+"/v1/backup", "", auth...); resp.StatusCode != http.StatusConflict {
		t.Errorf("a second at once: %d %s", resp.StatusCode, body)
	}
	slow.Body.Close()
	deadline := time.Now().Add(time.Minute)
	for f.backupOpen.Load() != 0 {
		if time.Now().After(deadline) {
			t.Fatal("a backup whose client has gone is held on to")
		}
		time.Sleep(time.Millisecond)
	}
}
