package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/millrace/millrace/storage/pebblestore"
	"github.com/spf13/cobra"
)

func doctorCommand(p *program) *cobra.Command {
	var data, memory string
	var deep, fix bool
	var edge edgeOptions
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check what a router needs: memory, disk, kernel, clock, its data, its answer",
		Long: `Doctor prints what a router would find here, and what to do about what is wrong; it exits with 1 if anything is.
The data directory is read only while no router has it open. With --deep every stored byte is read and checked.

What it can mend by itself it lists, and mends with --fix: folders that a backup or a restoration left which was cut off, files
that were never finished, a data directory that others may read. It changes nothing of what is stored, and nothing while a router runs.`,
		Example: `  router doctor
  router doctor --data ./data --deep
  router doctor --memory 400MiB
  router doctor --data ./data --fix
  router doctor --tls-cert fullchain.pem --tls-key privkey.pem`,
		Args: cobra.NoArgs,
	}
	r := p.remoteFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&data, "data", "", "data `directory` ($STATE_DIRECTORY, else ~/.local/share/millrace)")
	f.StringVar(&memory, "memory", "", "memory to split, as with serve, such as `400MiB`")
	edge.tlsFlags(f)
	f.BoolVar(&fix, "fix", false, "mend what can be mended: leftovers of killed processes, modes that let others read")
	f.BoolVar(&deep, "deep", false, "read and check every stored byte")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := p.client(cmd, r)
		if err != nil {
			return err
		}
		total := defaultMemory()
		if memory != "" {
			if total, err = parseSize(memory); err != nil {
				return usagef(cmd, "--memory: %v", err)
			}
		}
		o := routerOptions{data: data}
		if err := p.serveDefaults(&o); err != nil {
			return err
		}
		e, began := &examination{w: p.stdout, json: c.json}, time.Now()
		e.memory(total)
		e.limits()
		e.certificates(edge)
		e.acme(o.data, began)
		e.descriptors()
		e.kernel("/")
		e.disk(o.data)
		e.filesystem(o.data)
		e.clock(o.data, began)
		e.mend(cmd.Context(), o.data, fix)
		e.modules(cmd.Context(), o.data)
		e.store(cmd.Context(), o.data, deep)
		e.server(cmd.Context(), c)
		e.running(cmd.Context(), c)
		now := time.Now()
		synced, known := clockSynced()
		e.steady(now.Round(0).Sub(began.Round(0)), now.Sub(began), synced, known)
		return e.done()
	}
	return cmd
}

// storeDir is the store's folder in the data directory.
const storeDir = "store"

// An examination gathers what doctor finds.
type examination struct {
	w        io.Writer
	json     bool
	findings []finding
	bad      int
}

// A finding is one line of doctor's. Bad ones make it exit with 1; Do says what to do.
type finding struct {
	What   string `json:"what"`
	State  string `json:"state"` // good, note or bad
	Detail string `json:"detail"`
	Do     string `json:"do,omitempty"`
}

func (e *examination) find(what, state, do, format string, args ...any) {
	f := finding{what, state, fmt.Sprintf(format, args...), do}
	e.findings = append(e.findings, f)
	if state == "bad" {
		e.bad++
	}
	if e.json {
		return
	}
	say(e.w, "%-4s  %-16s %s", state, what, clean(f.Detail))
	if do != "" {
		say(e.w, "      %-16s → %s", "", clean(do))
	}
}

func (e *examination) done() error {
	if e.json {
		doc, err := json.Marshal(e.findings)
		if err != nil {
			return err
		}
		if err := printJSON(e.w, doc); err != nil {
			return err
		}
	}
	if e.bad > 0 {
		return errSaid
	}
	return nil
}

func (e *examination) memory(total int64) {
	m := splitMemory(total)
	if total < minMemory {
		e.find("memory", "bad", fmt.Sprintf("give the router %s at least, with --memory or a larger cgroup", sizeText(minMemory)), "%s", m)
		return
	}
	e.find("memory", "good", "", "%s", m)
}

// fewDescriptors is how many a router needs at least: connections in, connections out, the store's files.
const fewDescriptors = 4096

// manyConnections is serve's --max-connections.
const manyConnections = 10_000

func (e *examination) descriptors() {
	most, err := openFiles()
	switch {
	case err != nil:
		e.find("descriptors", "note", "", "%v", err)
	case most < fewDescriptors:
		e.find("descriptors", "bad", fmt.Sprintf("raise it to %d or more: 'ulimit -Hn', or LimitNOFILE= of the unit", 16*fewDescriptors),
			"at most %d open files and connections", most)
	case most < manyConnections+fewDescriptors:
		e.find("descriptors", "note", fmt.Sprintf("raise it to %d, or give serve a lower --max-connections", 16*fewDescriptors),
			"up to %d open files and connections; serve takes %d connections without --max-connections", most, manyConnections)
	default:
		e.find("descriptors", "good", "", "up to %d open files and connections", most)
	}
}

// lowDisk is the free space below which doctor warns, in bytes: the default bound of one topic.
const lowDisk = 1 << 30

func (e *examination) disk(dir string) {
	at := existing(dir)
	free, total, err := pebblestore.DiskSpace(at)
	if err != nil {
		e.find("disk", "bad", "name another directory with --data", "%s: %v", at, err)
		return
	}
	if free < lowDisk {
		e.find("disk", "bad", "free some, or name a directory on another disk with --data; a full disk makes the router refuse events (507)",
			"%s free of %s at %s", sizeText(free), sizeText(total), at)
		return
	}
	e.find("disk", "good", "", "%s free of %s at %s", sizeText(free), sizeText(total), at)
}

// store checks the data directory's contents.
func (e *examination) store(ctx context.Context, data string, deep bool) {
	dir := filepath.Join(data, storeDir)
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		e.find("data", "note", "", "%s: nothing there yet; 'router serve' makes it", data)
		return
	}
	if err != nil || !info.IsDir() {
		if err == nil {
			err = fmt.Errorf("%s is not a directory", dir)
		}
		e.find("data", "bad", "name the data directory with --data, and run doctor as the user that the router runs as", "%v", err)
		return
	}
	err = pebblestore.Check(ctx, dir, deep, func(line string) { e.find("data", "note", "", "%s", line) })
	if err != nil {
		e.find("data", "bad", "", "%v", err)
		return
	}
	how := "opens and is consistent"
	if deep {
		how = "every stored byte reads back"
	}
	e.find("data", "good", "", "%s: %s", dir, how)
}

// server asks the router whether it is ready. That none runs is no fault.
func (e *examination) server(ctx context.Context, c *client) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	u := c.base.JoinPath("readyz")
	req, err := c.request(ctx, http.MethodGet, u, nil)
	if err != nil {
		e.find("server", "bad", "", "%v", err)
		return
	}
	res, err := c.send(req)
	var p *problem
	switch {
	case errors.As(err, &p):
		e.find("server", "bad", "its log says more; 503 passes once it has started or drained", "%s answers %s", c.base.Redacted(), p.Error())
	case err != nil && strings.Contains(err.Error(), "connection refused"):
		e.find("server", "note", "", "%v", err)
	case err != nil:
		e.find("server", "bad", "", "%v", err)
	default:
		res.Body.Close()
		e.find("server", "good", "", "ready at %s", c.base.Redacted())
		e.access(ctx, c)
	}
}
