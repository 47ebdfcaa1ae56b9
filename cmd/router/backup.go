package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/storage/pebblestore"
)

type backingUp struct {
	file, data, rate string
	verify           string
}

func backupCommand(p *program) *cobra.Command {
	o := &backingUp{}
	cmd := &cobra.Command{
		Use:   "backup",
		Short: "Copy all that a router keeps to a file, while it runs",
		Long: `Backup asks a running router for a copy of its data directory as it is at that moment: topics with their events, cursors,
parked deliveries, dead letters, functions with their modules and state, keys, rules that were applied. What was acknowledged before is
in it. The router goes on meanwhile, and sends no faster than --rate.

With --data it copies the data directory of a router that does not run.

The file is checked as it is written and appears only when it is whole. It holds all events, and the data that they carry, in
clear: its mode is 0600. To keep it encrypted write it to standard output:

  router backup -o - | age -p -o millrace.tar.age

--verify reads a file that was written before and says whether it is whole.`,
		Example: `  router backup -o millrace.tar
  router backup --verify millrace.tar
  router backup --data ./data -o millrace.tar`,
		Args: cobra.NoArgs,
	}
	r := p.serverFlags(cmd)
	f := cmd.Flags()
	f.StringVarP(&o.file, "output", "o", "", "write to `FILE`; - is standard output")
	f.StringVar(&o.data, "data", "", "copy this data `directory`, which no router may have open")
	f.StringVar(&o.rate, "rate", "", "read no more than this `size` a second from a router that runs (64MiB)")
	f.StringVar(&o.verify, "verify", "", "check this `FILE`; - is standard input")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if (o.file == "") == (o.verify == "") {
			return usagef(cmd, "want -o FILE to make a backup, or --verify FILE to check one")
		}
		switch {
		case o.verify != "":
			return p.verifyBackup(cmd.Context(), o.verify)
		case o.file == "-" && isTerminal(p.stdout):
			return usagef(cmd, "-o -: a backup is no text for a terminal; name a file, or pipe it on")
		case o.data != "":
			if o.rate != "" || cmd.Flags().Changed("server") {
				return usagef(cmd, "--data copies a directory here; --server and --rate are of a router that runs")
			}
			return p.saveBackup(o.file, func(w io.Writer, begin func(*backupHead) error) error {
				_, err := backupAtRest(cmd.Context(), o.data, begin, w)
				return err
			}, cmd.Context())
		}
		c, err := p.client(cmd, r)
		if err != nil {
			return err
		}
		u := c.path("backup")
		if o.rate != "" {
			n, err := parseSize(o.rate)
			if err != nil {
				return usagef(cmd, "--rate: %v", err)
			}
			u.RawQuery = url.Values{"rate": {strconv.FormatInt(n, 10)}}.Encode()
		}
		return p.saveBackup(o.file, func(w io.Writer, _ func(*backupHead) error) error {
			req, err := c.request(cmd.Context(), "GET", u, nil)
			if err != nil {
				return err
			}
			res, err := c.send(req)
			if err != nil {
				return err
			}
			defer res.Body.Close()
			_, err = io.Copy(w, res.Body)
			return err
		}, cmd.Context())
	}
	return cmd
}

// saveBackup writes what fetch brings to a file, checking it on the way: the file appears whole or not at all.
func (p *program) saveBackup(file string, fetch func(w io.Writer, begin func(*backupHead) error) error, ctx context.Context) error {
	out, finish, abandon := p.stdout, func() error { return nil }, func() error { return nil }
	if file != "-" {
		f, err := os.CreateTemp(filepath.Dir(file), filepath.Base(file)+".*.tmp") // of mode 0600
		if err != nil {
			return err
		}
		out = f
		abandon = func() error { return errors.Join(f.Close(), os.Remove(f.Name())) }
		finish = func() error {
			if err := errors.Join(f.Sync(), f.Close(), os.Rename(f.Name(), file)); err != nil {
				return errors.Join(err, os.Remove(f.Name()))
			}
			return syncFolder(filepath.Dir(file))
		}
	}
	room := func(h *backupHead) error {
		if file == "-" {
			return nil
		}
		return roomFor(filepath.Dir(file), h.Bytes)
	}
	pr, pw := io.Pipe()
	checked := make(chan error, 1)
	var head *backupHead
	go func() {
		var err error
		head, err = p.checkBackup(ctx, io.TeeReader(pr, out), room)
		if err == nil {
			_, err = io.Copy(out, pr) // tar's padding
		}
		pr.CloseWithError(err)
		checked <- err
	}()
	err := fetch(pw, room)
	pw.CloseWithError(err)
	if read := <-checked; err == nil || errors.Is(err, read) || errors.Is(read, errBackupBad) && ctx.Err() == nil {
		err = read // says more than that a pipe is closed
	}
	if err != nil {
		return errors.Join(fmt.Errorf("backup: %w", err), abandon())
	}
	if err := finish(); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	p.sayBackup(file, head)
	return nil
}

func (p *program) verifyBackup(ctx context.Context, file string) error {
	in := p.stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	head, err := p.checkBackup(ctx, in, func(*backupHead) error { return nil })
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	p.sayBackup(file, head)
	return nil
}

// checkBackup reads a whole backup; on a terminal it says how far it is.
func (p *program) checkBackup(ctx context.Context, r io.Reader, begin func(*backupHead) error) (*backupHead, error) {
	n, done, total := p.notice(), int64(0), int64(0)
	defer n.end()
	return readBackup(ctx, r, func(h *backupHead) error {
		total = h.Bytes
		return begin(h)
	}, func(_ backupFile, r io.Reader) error {
		_, err := io.Copy(writer(func(b []byte) {
			done += int64(len(b))
			n.say("%s of %s", sizeText(done), sizeText(total))
		}), r)
		return err
	})
}

type writer func([]byte)

// Write never fails.
func (w writer) Write(b []byte) (int, error) {
	w(b)
	return len(b), nil
}

func (p *program) sayBackup(file string, h *backupHead) {
	say(p.stderr, "%s: whole; %s in %s, as of %s, by router %s", clean(file), sizeText(h.Bytes), plural(len(h.Files), "file"), h.Made.Format(time.RFC3339), clean(h.Version))
}

// roomFor refuses to write so many bytes to a disk that has not as many, and some over.
func roomFor(dir string, bytes int64) error {
	free, _, err := pebblestore.DiskSpace(dir)
	if err != nil {
		return err
	}
	if need := bytes + bytes/64 + 64<<20; bytes < 0 || need < bytes || free < need {
		return fmt.Errorf("%s are free at %s, and %s are needed; name another disk, or free some", sizeText(free), dir, sizeText(max(bytes, need)))
	}
	return nil
}
