package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/millrace/millrace/engine/rules"
)

// A remoteStore keeps the last good rules from afar in the data directory: one file, a line of JSON and the answer
// as it came, so that what is said of it is of it.
type remoteStore struct{ dir string }

// remoteFile is the file's name.
const remoteFile = "rules.last"

// keptLine is the first line of the file.
type keptLine struct {
	URL    string `json:"url"`
	ETag   string `json:"etag,omitempty"`
	Digest string `json:"digest"` // "sha256:<hex>" of what follows
}

// load returns what is kept, of this URL or another, unchecked but for its digest; nil if there is nothing.
func (s remoteStore) load(url string) (*remoteBundle, error) {
	f, err := os.Open(filepath.Join(s.dir, remoteFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, rules.MaxSigned+8<<10))
	if err != nil {
		return nil, err
	}
	line, file, _ := bytes.Cut(b, []byte("\n"))
	var head keptLine
	if err := json.Unmarshal(line, &head); err != nil || digestOf(file) != head.Digest {
		return nil, fmt.Errorf("%s is damaged", f.Name())
	}
	return &remoteBundle{file: file, etag: head.ETag, elsewhere: head.URL != digestOf([]byte(url))}, nil
}

// keep replaces what is kept, so that a power cut leaves the one or the other.
func (s remoteStore) keep(url string, b *remoteBundle) error {
	head, err := json.Marshal(keptLine{URL: digestOf([]byte(url)), ETag: b.etag, Digest: digestOf(b.file)}) // a URL may have a password in it
	if err != nil {
		return err
	}
	text := append(append(head, '\n'), b.file...)
	if err := writeWhole(filepath.Join(s.dir, remoteFile), text, 0o600); err != nil {
		return err
	}
	return syncFolder(s.dir) // else a power cut may undo the renaming
}
