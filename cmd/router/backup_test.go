package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const backedUp = `version: 1
topics: {orders: {}, letters: {}}
subscriptions:
  work: {topic: orders, deliver: {pull: {}}}
  waits: {topic: letters, deliver: {webhook: {url: "http://127.0.0.1:1/"}}, retry: {schedule: [1h]}}
  fails: {topic: letters, deliver: {webhook: {url: "http://127.0.0.1:1/"}}, retry: {attempts: 1}}
`

// What was acknowledged before a backup began is in the router that is restored from it, though others published all
// the while: events, cursors, deliveries that wait, dead letters. It is not while it runs that the file is checked.
func TestBackupUnderLoad(t *testing.T) {
	p := startProcess(t, backedUp)
	p.must(202, "POST", "/v1/topics/letters/events", "application/json", `{"n":1}`)
	state := func(p *process, name string) string {
		return p.must(200, "GET", "/v1/subscriptions/"+name, "", "")
	}
	until(t, "one waits, one is dead", func() bool {
		return strings.Contains(state(p, "waits"), `"parked":1`) && strings.Contains(state(p, "fails"), `"deadLettered":1`)
	})
	var mu sync.Mutex
	acked := map[string]bool{}
	var stop atomic.Bool
	var publishers sync.WaitGroup
	base := p.base
	for w := range 4 {
		publishers.Go(func() {
			for n := 0; !stop.Load(); n++ {
				id := fmt.Sprint(w, "-", n)
				if code, _, errs := runAt(t, base, "publish", "orders", "{}", "--id", id); code != 0 {
					t.Error(errs)
					return
				}
				mu.Lock()
				acked[id] = true
				mu.Unlock()
			}
		})
	}
	published := func() int { mu.Lock(); defer mu.Unlock(); return len(acked) }
	until(t, "some are published", func() bool { return published() > 20 })
	pulled := p.must(200, "POST", "/v1/subscriptions/work/pull", "application/json", `{"max":5}`)
	var leases []string
	for _, part := range strings.Split(pulled, `"lease":"`)[1:] {
		id, _, _ := strings.Cut(part, `"`)
		leases = append(leases, `"`+id+`"`)
	}
	p.must(200, "POST", "/v1/subscriptions/work/ack", "application/json", `{"leases":[`+strings.Join(leases, ",")+`]}`)

	before := map[string]bool{}
	mu.Lock()
	for id := range acked {
		before[id] = true
	}
	mu.Unlock()
	file := filepath.Join(t.TempDir(), "b.tar")
	code, _, errs := runAt(t, p.base, "backup", "-o", file)
	if code != 0 || !strings.Contains(errs, "whole") {
		t.Fatalf("backup: %d %s", code, errs)
	}
	until(t, "more are published", func() bool { return published() > len(before)+20 })
	metrics := p.must(200, "GET", "/metrics", "", "")
	for _, want := range []string{`\nmillrace_backups_total{result="made"} 1\n`, `\nmillrace_backups_total{result="failed"} 0\n`, `\nmillrace_backup_last_bytes [1-9]`, `\nmillrace_backup_last_seconds [0-9]`,
		`\nmillrace_backup_last_timestamp_seconds 1`} {
		if !regexp.MustCompile(want).MatchString(metrics) {
			t.Errorf("the metrics lack %s", want)
		}
	}
	stop.Store(true)
	publishers.Wait()
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the backup's mode: %v, %v", info.Mode(), err)
	}
	waits, fails := state(p, "waits"), state(p, "fails")
	p.stop() // the first goes, the second comes in its place

	c := newProcess(t)
	c.o.rules = p.o.rules
	if code, _, errs := runAt(t, "", "restore", file, "--data", c.o.data); code != 0 {
		t.Fatalf("restore: %d %s", code, errs)
	}
	c.start()
	defer func() { c.stop() }()
	code, all, errs := runAt(t, c.base, "export", "orders")
	if code != 0 {
		t.Fatal(errs)
	}
	for id := range before {
		if !strings.Contains(all, `"`+id+`"`) {
			t.Errorf("%s was acknowledged before the backup and is not in it", id)
		}
	}
	first := c.must(200, "POST", "/v1/subscriptions/work/pull", "application/json", `{"max":1}`)
	if strings.Contains(pulled, positionIn(t, first)) {
		t.Errorf("what was acknowledged is delivered again: %s", first)
	}
	for name, was := range map[string]string{"waits": waits, "fails": fails} {
		if got := state(c, name); count(t, got, "parked") != count(t, was, "parked") || count(t, got, "deadLetters") != count(t, was, "deadLetters") {
			t.Errorf("%s was\n%s\nand is\n%s", name, was, got)
		}
	}
	if _, err := os.Stat(filepath.Join(c.o.data, restoredName)); err == nil {
		t.Error("the note of the restoration is still there after the first start")
	}
}

func positionIn(t *testing.T, pulled string) string {
	t.Helper()
	_, rest, ok := strings.Cut(pulled, `"millraceposition":"`)
	if !ok {
		t.Fatalf("no position in %s", pulled)
	}
	at, _, _ := strings.Cut(rest, `"`)
	return `"` + at + `"`
}

func count(t *testing.T, doc, key string) string {
	t.Helper()
	_, rest, ok := strings.Cut(doc, `"`+key+`":`)
	if !ok {
		t.Fatalf("no %s in %s", key, doc)
	}
	return rest[:strings.IndexAny(rest, ",}")]
}

// aBackup is a small one, made by hand.
func aBackup(t testing.TB) []byte {
	t.Helper()
	dir := t.TempDir()
	head := backupHead{Made: time.Unix(1_700_000_000, 0).UTC(), Version: "v1"}
	for name, text := range map[string]string{"store/offsets": "o", "functions/modules/x.wasm": strings.Repeat("w", 700)} {
		path := filepath.Join(dir, filepath.Base(name))
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		head.Files = append(head.Files, backupFile{Name: name, Size: int64(len(text)), path: path})
	}
	var b bytes.Buffer
	if err := writeBackup(context.Background(), &b, head); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func readWhole(b []byte) error {
	_, err := readBackup(context.Background(), bytes.NewReader(b), func(*backupHead) error { return nil }, func(_ backupFile, r io.Reader) error {
		_, err := io.Copy(io.Discard, r)
		return err
	})
	return err
}

// A backup that was cut off anywhere, or in which anything that matters was changed, is refused in words.
func TestDamagedBackup(t *testing.T) {
	good := aBackup(t)
	if err := readWhole(good); err != nil {
		t.Fatal(err)
	}
	end := bytes.LastIndexByte(good, '}') + 1 // what follows is tar's own: zeros
	for n := 0; n < end; n += 97 {
		if err := readWhole(good[:n]); !errors.Is(err, errBackupBad) && !errors.Is(err, errNoBackup) {
			t.Fatalf("cut off at byte %d: %v", n, err)
		}
	}
	for n := 0; n < end; n++ {
		bad := bytes.Clone(good)
		bad[n] ^= 4
		err := readWhole(bad)
		// Between a file's end and the next block, after a name, and what ends a header's own sum.
		padding := bad[n] == 4 && n%512 != 0 || n%512 == 154 || n%512 == 155
		if err == nil && !padding {
			t.Fatalf("byte %d is %#x for %#x, and nobody minds", n, bad[n], good[n])
		}
	}
	if err := readWhole(append(bytes.Clone(good[:len(good)-1024]), aBackup(t)...)); err == nil || !strings.Contains(err.Error(), "more follows") {
		t.Errorf("two in one: %v", err)
	}
}

func TestBackupNames(t *testing.T) {
	for text, want := range map[string]string{
		`{"format":2,"version":"v9","files":[]}`:                                                      "in format 2; this build knows up to 1",
		`{"format":0}`:                                                                                "no backup",
		`{"format":1,"bytes":1,"files":[{"name":"../x","size":1}]}`:                                   "no name of a file",
		`{"format":1,"bytes":1,"files":[{"name":"/x","size":1}]}`:                                     "no name of a file",
		`{"format":1,"bytes":1,"files":[{"name":"store\\..\\x","size":1}]}`:                           "no name of a file",
		`{"format":1,"bytes":1,"files":[{"name":"c:x","size":1}]}`:                                    "no name of a file",
		`{"format":1,"bytes":2,"files":[{"name":"store/a","size":1},{"name":"store/a","size":1}]}`:    "twice",
		`{"format":1,"bytes":0,"files":[{"name":"store/a","size":-1}]}`:                               "-1 bytes",
		`{"format":1,"bytes":9,"files":[{"name":"store/a","size":1}]}`:                                "1 bytes of 9",
		`{"format":1,"bytes":1,"files":[{"name":"a","size":1}]}`:                                      "no store",
		`{"format":1,"bytes":1,"files":[{"name":"store/a","size":9223372036854775807},{"name":"b"}]}`: "larger than",
		`[]`: "cannot be read",
	} {
		var b bytes.Buffer
		tw := tar.NewWriter(&b)
		if err := writeTarFile(tw, backupHeadName, time.Unix(0, 0), strings.NewReader(text), int64(len(text))); err != nil {
			t.Fatal(err)
		}
		if err := readWhole(b.Bytes()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", text, err, want)
		}
	}
	if err := readWhole([]byte(strings.Repeat("no tar", 500))); !errors.Is(err, errNoBackup) {
		t.Error(err)
	}
}

// A restoration that was killed before its last move is begun again; a router does not start on what it left.
func TestRestoreAfterAKill(t *testing.T) {
	data := t.TempDir()
	for _, dir := range []string{".restore/store", "functions"} {
		if err := os.MkdirAll(filepath.Join(data, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := readRestored(data); err == nil || !strings.Contains(err.Error(), "cut short") {
		t.Errorf("a router on half a restoration: %v", err)
	}
	r := &restoration{data: data, stage: filepath.Join(data, restoreStage)}
	if err := os.WriteFile(filepath.Join(r.stage, movedName), []byte("functions\nrules.last"), 0o600); err != nil {
		t.Fatal(err)
	}
	mine := filepath.Join(data, "rules.yaml")
	if err := os.WriteFile(mine, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.claim(); err == nil || !strings.Contains(err.Error(), "rules.yaml") {
		t.Errorf("a file of somebody else's: %v", err)
	}
	if err := os.Remove(mine); err != nil {
		t.Fatal(err)
	}
	if err := r.claim(); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(data); err != nil || len(entries) != 1 {
		t.Errorf("begun again with %v, %v", entries, err)
	}
	// Killed after its last move, it is whole: only its folder is left.
	if err := os.MkdirAll(filepath.Join(data, storeDir), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := readRestored(data); err != nil {
		t.Error(err)
	}
	if err := r.claim(); err == nil || !strings.Contains(err.Error(), "holds store") {
		t.Errorf("a restoration over a store: %v", err)
	}
}

// When the last backup was made is known after a restart too; one that was cut off counts as failed and changes nothing of that.
func TestBackupsAreNoted(t *testing.T) {
	data := t.TempDir()
	book, err := openBackupBook(data)
	if err != nil {
		t.Fatal(err)
	}
	if last, made, failed := book.stats(); !last.Made.IsZero() || made+failed != 0 {
		t.Errorf("of a new router: %v, %d, %d", last, made, failed)
	}
	want := lastBackup{Made: time.Unix(1_700_000_000, 0).UTC(), Ended: time.Unix(1_700_000_060, 0).UTC(), Bytes: 99}
	if err := book.ended(want, nil); err != nil {
		t.Fatal(err)
	}
	if err := book.ended(lastBackup{}, io.ErrClosedPipe); !errors.Is(err, io.ErrClosedPipe) {
		t.Error(err)
	}
	if last, made, failed := book.stats(); last != want || made != 1 || failed != 1 {
		t.Errorf("%v, %d, %d", last, made, failed)
	}
	if book, err = openBackupBook(data); err != nil || book.last != want {
		t.Errorf("after a restart: %v, %v", book, err)
	}
	if err := walkKept(data, func(rel string, _ fs.DirEntry) error { return fmt.Errorf("a backup would have %s", rel) }); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(data, backupNote), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if book, err = openBackupBook(data); err == nil || book == nil || book.last != (lastBackup{}) { // which a router starts with
		t.Errorf("a note that was cut: %v, %v", book, err)
	}
	unsent := &openBackup{of: backups{data: data, one: &sync.Mutex{}, book: book}} // its client was gone before the first byte
	unsent.of.one.Lock()
	if err := unsent.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, failed := book.stats(); failed != 1 {
		t.Errorf("%d failed, with one of which nothing was sent", failed)
	}
}

// Two restorations into one directory would unpack over each other; and one that has ended leaves no lock behind, also
// when it has failed.
func TestOneRestorationAtOnce(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	entered, leave := make(chan struct{}), make(chan struct{})
	first := make(chan error, 1)
	go func() {
		r := &restoration{p: &program{stderr: io.Discard}, data: data, quick: true}
		first <- r.run(t.Context(), readerOf(func(b []byte) (int, error) {
			close(entered)
			<-leave
			return 0, io.EOF
		}))
	}()
	<-entered
	stage := filepath.Join(data, restoreStage)
	if code, _, errs := runAt(t, "", "restore", os.DevNull, "--data", data); code != 1 || !strings.Contains(errs, "a restoration is at work") {
		t.Errorf("a second one: %d %s", code, errs)
	}
	if _, err := os.Stat(stage); err != nil {
		t.Errorf("the second has taken the first one's folder: %v", err)
	}
	close(leave)
	if err := <-first; !errors.Is(err, errNoBackup) {
		t.Errorf("the first: %v", err)
	}
	if entries, err := os.ReadDir(data); err != nil || len(entries) != 0 {
		t.Errorf("what is left: %v, %v", entries, err)
	}
	if code, _, errs := runAt(t, "", "restore", os.DevNull, "--data", data); code != 1 || !strings.Contains(errs, errNoBackup.Error()) {
		t.Errorf("a third one: %d %s", code, errs)
	}
}

type readerOf func([]byte) (int, error)

func (r readerOf) Read(b []byte) (int, error) { return r(b) }

// What a backup names is counted while it is read: not when tens of millions of entries are in memory.
func TestBackupNamesAreBounded(t *testing.T) {
	many := strings.Repeat("{},", 2*maxBackupFiles)
	sums := strings.Repeat(`"a":"",`, 2*maxBackupFiles)
	for name, read := range map[string]func() (int, error){
		"files": func() (int, error) {
			var h backupHead
			err := json.Unmarshal([]byte(`{"format":1,"files":[`+many+`{}]}`), &h)
			return cap(h.Files), err
		},
		"sums": func() (int, error) {
			var s backupSums
			err := json.Unmarshal([]byte(`{"format":1,"files":{`+sums+`"b":""}}`), &s)
			return 0, err
		},
	} {
		if n, err := read(); !errors.Is(err, errManyFiles) || n > 2*maxBackupFiles {
			t.Errorf("%s: room for %d, %v", name, n, err)
		}
	}
	for _, bad := range []string{`{"files":1}`, `{"files":null}`, `{"files":[1]}`, `{"files":{"a":1}}`} {
		if json.Unmarshal([]byte(bad), &backupHead{}) == nil && json.Unmarshal([]byte(bad), &backupSums{}) == nil {
			t.Errorf("%s is read as files and as sums", bad)
		}
	}
}

// A few bytes must not fill a disk.
func TestBackupIsNoBomb(t *testing.T) {
	if plainFile(&tar.Header{Typeflag: tar.TypeReg, PAXRecords: map[string]string{"GNU.sparse.major": "1"}}) || !plainFile(&tar.Header{Typeflag: tar.TypeReg}) {
		t.Error("a sparse file is taken for a plain one, or a plain one for a sparse one")
	}
	if roomFor(t.TempDir(), math.MaxInt64) == nil || roomFor(t.TempDir(), 1) != nil {
		t.Error("there is room for 8 EiB, or none for a byte")
	}
}

func FuzzReadBackup(f *testing.F) {
	good := aBackup(f)
	f.Add(good)
	f.Add(good[:1500])
	f.Add([]byte("no tar"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = readBackup(t.Context(), bytes.NewReader(b), func(h *backupHead) error { return h.check() }, func(file backupFile, r io.Reader) error {
			if !filepath.IsLocal(file.Name) {
				t.Errorf("%q leads out of its folder", file.Name)
			}
			return nil
		})
	})
}
