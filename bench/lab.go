package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A lab holds what measurements share: processes, each started when it is first needed, and a folder on the disk that
// is measured. Its children end with the context that it was made with, or by close.
type lab struct {
	o      options
	dir    string
	self   string // this program
	binary string // the router
	bar    *progress
	start  func(name string, address func(string) (string, bool), path string, args ...string) (*child, error)

	kids      []*child
	routers   int
	board     *board
	nothing   *child         // counts on board
	main      *routerProcess // the router that publishing and delivering are measured on
	secure    *routerProcess // and one that speaks HTTPS
	roots     *x509.CertPool // of its certificate
	guarded   *guarded       // and one that asks who calls
	redis     *child
	mqtt      *mqttRouter // and one that speaks MQTT
	mosquitto *child
	fsyncs    float64
	load      string // of the machine by others, before anything was measured
}

// loadAverage is the kernel's, of the last minute.
func loadAverage() string {
	b, _ := os.ReadFile("/proc/loadavg")
	one, _, _ := strings.Cut(string(b), " ")
	return one
}

func newLab(ctx context.Context, o options, bar *progress) (l *lab, err error) {
	l = &lab{o: o, bar: bar, load: loadAverage()}
	if l.self, err = os.Executable(); err != nil {
		return nil, err
	}
	if l.dir, err = os.MkdirTemp(o.dir, "millrace-bench-"); err != nil {
		return nil, err
	}
	l.start = func(name string, address func(string) (string, bool), path string, args ...string) (*child, error) {
		c, err := startChild(ctx, name, address, path, args...)
		if err == nil {
			l.kids = append(l.kids, c)
		}
		return c, err
	}
	if o.profile != "" {
		if err := os.MkdirAll(o.profile, 0o755); err != nil {
			return nil, errors.Join(err, l.close())
		}
	}
	if l.binary = o.router; l.binary == "" {
		bar.step("building the router")
		l.binary = filepath.Join(l.dir, "router")
		out, err := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", l.binary, "github.com/millrace/millrace/cmd/router").CombinedOutput()
		if err != nil {
			return nil, errors.Join(fmt.Errorf("build the router: %w\n%s", err, out), l.close())
		}
	}
	return l, nil
}

// close ends all children and removes the folder.
func (l *lab) close() error {
	for _, c := range l.kids {
		c.cancel() // all at once: each may take its time
	}
	for _, c := range l.kids {
		c.stop()
	}
	if l.board != nil {
		l.board.close()
	}
	return os.RemoveAll(l.dir)
}

func (l *lab) length() time.Duration { return time.Duration(l.o.seconds * float64(time.Second)) }

// receiver starts the do-nothing server once.
func (l *lab) receiver() (*child, error) {
	if l.nothing != nil {
		return l.nothing, l.nothing.gone()
	}
	path := filepath.Join(l.dir, "board")
	var err error
	if l.board, err = openBoard(path); err != nil {
		return nil, err
	}
	l.nothing, err = l.start("the do-nothing server", listensAt, l.self, nothingCommand, path)
	return l.nothing, err
}

// router starts a router on a data directory of its own.
func (l *lab) router(args ...string) (*routerProcess, error) {
	return l.routerSaying(routerListensAt, args...)
}

// routerSaying is router for who wants to read its first lines, as routerListensAt does.
func (l *lab) routerSaying(address func(line string) (string, bool), args ...string) (*routerProcess, error) {
	l.routers++
	name := "router-" + strconv.Itoa(l.routers)
	args = append([]string{"serve", "--data", filepath.Join(l.dir, name), "--listen", "127.0.0.1:0", "--allow-private-targets"}, args...)
	if l.o.profile != "" {
		args = append(args, "--cpuprofile", filepath.Join(l.o.profile, name+".pprof"))
	}
	c, err := l.start("the router", address, l.binary, args...)
	if err != nil {
		return nil, err
	}
	return &routerProcess{child: c, http: &http.Client{Timeout: 60 * time.Second}}, nil
}

// routerListensAt finds the address in the router's first lines.
func routerListensAt(line string) (string, bool) {
	kind, rest, _ := strings.Cut(line, " ")
	addr, ok := strings.CutPrefix(strings.TrimSpace(rest), "http://")
	return addr, ok && kind == "listen"
}

// mainRouter starts, once, the router that most is measured on.
func (l *lab) mainRouter(ctx context.Context) (*routerProcess, error) {
	if l.main != nil {
		return l.main, l.main.gone()
	}
	r, err := l.router()
	if err != nil {
		return nil, err
	}
	if err := r.call(ctx, "POST", "/v1/topics", "application/json", []byte(`{"name":"accepted"}`), nil); err != nil {
		return nil, err
	}
	l.main = r
	return r, nil
}

// A routerProcess is a running router as the measurements see it.
type routerProcess struct {
	*child
	http *http.Client
}

// call makes an API call that must succeed; a JSON answer goes into out unless it is nil.
func (b *routerProcess) call(ctx context.Context, method, path, contentType string, body []byte, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+b.addr+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", contentType)
	res, err := b.http.Do(req)
	if err != nil {
		return errors.Join(err, b.gone())
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, 16<<20))
	if err != nil {
		return err
	}
	if res.StatusCode >= 300 {
		return fmt.Errorf("%s %s: the router answered %d: %.400s", method, path, res.StatusCode, answer)
	}
	if out == nil {
		return nil
	}
	if text, ok := out.(*string); ok {
		*text = string(answer)
		return nil
	}
	return json.Unmarshal(answer, out)
}

// metrics are the router's, by name with labels as they are written.
func (b *routerProcess) metrics(ctx context.Context) (map[string]float64, error) {
	var text string
	if err := b.call(ctx, "GET", "/metrics", "", nil, &text); err != nil {
		return nil, err
	}
	return parseMetrics(text), nil
}

func parseMetrics(text string) map[string]float64 {
	m := map[string]float64{}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		line = strings.TrimSpace(line)
		if i := strings.LastIndexByte(line, ' '); i > 0 {
			if v, err := strconv.ParseFloat(line[i+1:], 64); err == nil {
				m[line[:i]] = v
			}
		}
	}
	return m
}

// procValue reads a number from a file of /proc about the child, such as VmRSS of status, in the file's unit.
func (c *child) procValue(file, name string) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", c.cmd.Process.Pid, file))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			return strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
		}
	}
	return 0, fmt.Errorf("/proc/%d/%s says nothing of %s", c.cmd.Process.Pid, file, name)
}

// rss is the child's resident memory in MiB.
func (c *child) rss() (float64, error) {
	v, err := c.procValue("status", "VmRSS")
	return v / 1024, err
}

// cpu is how many seconds of CPU the child has taken, 0 where /proc does not tell. The kernel counts them in hundredths
// (proc(5), utime and stime, after the name in parentheses).
func (c *child) cpu() float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseFloat(fields[11], 64)
	system, _ := strconv.ParseFloat(fields[12], 64)
	return (user + system) / 100
}

// ownCPU is the same of this process.
func ownCPU() float64 {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}

// machine describes what was measured on.
func (l *lab) machine() map[string]string {
	m := map[string]string{"cores": strconv.Itoa(runtime.NumCPU()), "go": runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH}
	field := func(path, name string) string {
		b, _ := os.ReadFile(path)
		for line := range strings.Lines(string(b)) {
			if key, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
				return strings.TrimSpace(v)
			}
		}
		return ""
	}
	if l.load != "" {
		m["load"] = l.load + " before the run; what others do at the same time makes figures smaller and ratios unsteady"
	}
	m["cpu"] = field("/proc/cpuinfo", "model name")
	m["memory"] = field("/proc/meminfo", "MemTotal")
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m["kernel"] = strings.TrimSpace(string(b))
	}
	if l.fsyncs > 0 {
		m["disk"] = fmt.Sprintf("%s appends of 4 KiB with fdatasync, one after the other", rate(l.fsyncs))
		if l.fsyncs > 100_000 {
			m["disk"] += "; is this memory? name a folder on a disk with -dir"
		}
	}
	return m
}
