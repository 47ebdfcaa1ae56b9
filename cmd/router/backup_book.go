package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// backupNote is where the data directory says when it was backed up last, so that a restart forgets nothing. It is not
// part of a backup: a router that was restored has none yet.
const backupNote = "backup.last"

// A lastBackup is that file.
type lastBackup struct {
	Made  time.Time `json:"made"`  // it began; what was acknowledged before is in it
	Ended time.Time `json:"ended"` // its last byte was sent
	Bytes int64     `json:"bytes"` // of the data directory's files
}

// A backupBook counts the backups of a router that runs, for its metrics.
type backupBook struct {
	path string

	mu           sync.Mutex
	made, failed uint64 // since the start
	last         lastBackup
}

// openBackupBook reads the note in a data directory, if there is one. The book is good with an error too: it is then that
// of a router that was never backed up.
func openBackupBook(data string) (*backupBook, error) {
	b := &backupBook{path: filepath.Join(data, backupNote)}
	text, err := os.ReadFile(b.path)
	if errors.Is(err, fs.ErrNotExist) {
		return b, nil
	}
	var last lastBackup
	if err == nil {
		err = json.Unmarshal(text, &last)
	}
	if err != nil {
		return b, fmt.Errorf("%s, which says when the last backup was made, cannot be read; the next one writes it anew: %w", b.path, err)
	}
	b.last = last
	return b, nil
}

// ended counts a backup that was sent whole, and notes it; or one that was not. One backup ends at a time.
func (b *backupBook) ended(last lastBackup, err error) error {
	if err != nil {
		b.fail()
		return err
	}
	b.mu.Lock()
	b.made++
	b.last = last
	b.mu.Unlock() // metrics do not wait for the disk
	text, err := json.Marshal(last)
	if err == nil {
		err = writeWhole(b.path, text, 0o600)
	}
	if err != nil {
		return fmt.Errorf("the backup is whole, but that it was made could not be noted: %w", err)
	}
	return nil
}

// fail counts a backup that did not reach its end.
func (b *backupBook) fail() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failed++
}

func (b *backupBook) stats() (last lastBackup, made, failed uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.last, b.made, b.failed
}
