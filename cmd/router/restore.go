package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/storage/pebblestore"
)

func restoreCommand(p *program) *cobra.Command {
	var data string
	var quick bool
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Make a data directory of a backup",
		Long: `Restore unpacks a backup into a folder of its own in the data directory, checks every sum and every stored byte, and
only then moves it to its place. It refuses a directory that holds anything, a file that is damaged or cut off, and one that a newer router
made. FILE may be - for standard input.

The router that is started there goes on from when the backup was made: same events, cursors, parked deliveries, dead
letters and state of functions. Where the original ran on after the backup, both have other events at the same positions from there
on; so what comes after the backup gets webhook-ids of its own, leases that the original gave are refused, and so is a cursor that stands behind
what was lost (410).`,
		Example: `  router restore millrace.tar --data ./restored
  age -d millrace.tar.age | router restore - --data /var/lib/millrace`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().StringVar(&data, "data", "", "data `directory` to make ($STATE_DIRECTORY, else ~/.local/share/millrace)")
	cmd.Flags().BoolVar(&quick, "quick", false, "check the sums, and not every stored byte again")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		o := routerOptions{data: data}
		if err := p.serveDefaults(&o); err != nil {
			return err
		}
		in := p.stdin
		if args[0] != "-" {
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			in = f
		}
		r := &restoration{p: p, data: o.data, quick: quick}
		if err := r.run(cmd.Context(), in); err != nil {
			return fmt.Errorf("restore %s: %w", args[0], err)
		}
		return nil
	}
	return cmd
}

// restoredName is what a restoration leaves for the first start after it.
const restoredName = "restored.json"

// A restored is that file.
type restored struct {
	Fork uint32    `json:"fork"` // see engine.Options
	Made time.Time `json:"made"` // the backup
	At   time.Time `json:"at"`
}

type restoration struct {
	p     *program
	data  string
	quick bool
	stage string
}

func (r *restoration) run(ctx context.Context, in io.Reader) (err error) {
	release, err := lockRestore(r.data)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	r.stage = filepath.Join(r.data, restoreStage)
	if err := r.claim(); err != nil {
		return err
	}
	head, err := r.unpack(ctx, in)
	if err != nil {
		return errors.Join(err, os.RemoveAll(r.stage))
	}
	if err := r.settle(head); err != nil {
		return err
	}
	say(r.p.stderr, "%s: restored %s in %s, as of %s; start it with: router serve --data %s", clean(r.data), sizeText(head.Bytes), plural(len(head.Files), "file"), head.Made.Format(time.RFC3339), clean(r.data))
	return nil
}

// claim makes the folder to unpack into, in a data directory that holds nothing else.
func (r *restoration) claim() error {
	entries, err := os.ReadDir(r.data)
	if err != nil {
		return err
	}
	var held []string
	again := false
	for _, e := range entries {
		switch e.Name() {
		case "lost+found", restoreLock:
		case restoreStage:
			again = true
		default:
			held = append(held, e.Name())
		}
	}
	moved, err := os.ReadFile(filepath.Join(r.stage, movedName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	own := strings.Split(string(moved), "\n")
	for _, name := range held {
		if !again || name == storeDir || !slices.Contains(own, name) {
			return fmt.Errorf("%s holds %s: a backup is not unpacked over what is there; name another directory with --data, or move that one away", r.data, strings.Join(held, ", "))
		}
	}
	// What a restoration that was killed had moved so far, the store being the last, comes again.
	for _, name := range append(held, restoreStage) {
		if err := os.RemoveAll(filepath.Join(r.data, name)); err != nil {
			return err
		}
	}
	return os.MkdirAll(r.stage, 0o700)
}

// unpack writes all files to the stage, durably, and checks them.
func (r *restoration) unpack(ctx context.Context, in io.Reader) (*backupHead, error) {
	n, done, total := r.p.notice(), int64(0), int64(0)
	defer n.end()
	dirs := map[string]bool{r.stage: true}
	head, err := readBackup(ctx, in, func(h *backupHead) error {
		total = h.Bytes
		for _, f := range h.Files {
			if top, _, _ := strings.Cut(f.Name, "/"); top == restoreStage || top == backupStage || top == restoreLock || f.Name == restoredName || f.Name == movedName || top == "lost+found" {
				return fmt.Errorf("%w: %q is no name of a backup's file", errBackupBad, f.Name)
			}
		}
		return roomFor(r.stage, h.Bytes)
	}, func(f backupFile, in io.Reader) error {
		path := filepath.Join(r.stage, filepath.FromSlash(f.Name))
		for dir := filepath.Dir(path); !dirs[dir]; dir = filepath.Dir(dir) {
			dirs[dir] = true
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.MultiWriter(out, writer(func(b []byte) {
			done += int64(len(b))
			n.say("unpacked %s of %s", sizeText(done), sizeText(total))
		})), in)
		if err == nil {
			err = out.Sync()
		}
		return errors.Join(err, out.Close())
	})
	if err != nil {
		return nil, err
	}
	n.say("checking %s", sizeText(total))
	var faults []error
	if err := pebblestore.Check(ctx, filepath.Join(r.stage, storeDir), !r.quick, func(line string) { faults = append(faults, errors.New(line)) }); err != nil {
		return nil, errors.Join(append([]error{fmt.Errorf("%w: its sums are right, but its store is not: %w", errBackupBad, err)}, faults...)...)
	}
	var id [4]byte
	for binary.LittleEndian.Uint32(id[:]) == 0 {
		_, _ = rand.Read(id[:]) // never fails
	}
	note, err := json.Marshal(restored{Fork: binary.LittleEndian.Uint32(id[:]), Made: head.Made, At: time.Now().UTC()})
	if err != nil {
		return nil, err
	}
	if err := writeWhole(filepath.Join(r.stage, restoredName), note, 0o600); err != nil {
		return nil, err
	}
	for dir := range dirs {
		if err := syncFolder(dir); err != nil {
			return nil, err
		}
	}
	return head, nil
}

// movedName lists, in the stage, what settle moves: nothing else of a directory is a killed restoration's.
const movedName = ".moved"

// settle moves what was unpacked to its place, the store last: with it the directory is whole.
func (r *restoration) settle(head *backupHead) error {
	entries, err := os.ReadDir(r.stage)
	if err != nil {
		return err
	}
	// A router of a build that does not look for the lock may have come in between: nothing is moved into its directory.
	if _, err := os.Lstat(filepath.Join(r.data, storeDir)); !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(fmt.Errorf("%s has a %s by now, which a router that was started meanwhile made: stop it, and restore to another directory", r.data, storeDir), err, os.RemoveAll(r.stage))
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if err := errors.Join(writeWhole(filepath.Join(r.stage, movedName), []byte(strings.Join(names, "\n")), 0o600), syncFolder(r.stage)); err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != storeDir {
			err = errors.Join(err, os.Rename(filepath.Join(r.stage, e.Name()), filepath.Join(r.data, e.Name())))
		}
	}
	if err = errors.Join(err, syncFolder(r.data)); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(r.stage, storeDir), filepath.Join(r.data, storeDir)); err != nil {
		return err
	}
	return errors.Join(syncFolder(r.data), os.RemoveAll(r.stage), syncFolder(r.data))
}

// openData makes a data directory, or refuses one in which a restoration was cut short: a router would find its store
// missing, and begin with none. Until release is called, which is once the store is open, no restoration begins. It
// returns what a restoration left for the first start.
func openData(dir string) (note *restored, release func() error, err error) {
	release, err = lockRestore(dir)
	if err == nil {
		if note, err = readRestored(dir); err != nil {
			err = errors.Join(err, release())
		}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("data directory: %w", err)
	}
	return note, release, nil
}

// readRestored is openData's look at what restorations left.
func readRestored(dir string) (*restored, error) {
	if _, err := os.Stat(filepath.Join(dir, restoreStage)); err == nil {
		if _, err := os.Stat(filepath.Join(dir, storeDir)); err != nil {
			return nil, fmt.Errorf("%s: a restoration was cut short here; run 'router restore' again, or remove the directory", dir)
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, restoredName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	note := &restored{}
	if err == nil {
		err = json.Unmarshal(b, note)
	}
	if err != nil || note.Fork == 0 {
		return nil, fmt.Errorf("%s: %s, which 'router restore' left, cannot be read: restore again (%w)", dir, restoredName, errors.Join(err))
	}
	return note, nil
}

// tidyData removes what a router that was killed left half made. The store is open: nobody else is at work here.
func tidyData(dir string, note *restored) error {
	err := errors.Join(os.RemoveAll(filepath.Join(dir, backupStage)), os.RemoveAll(filepath.Join(dir, restoreStage)))
	if note != nil { // the engine has written it down
		err = errors.Join(err, os.Remove(filepath.Join(dir, restoredName)))
	}
	return err
}
