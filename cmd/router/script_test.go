package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(withCache{m}, map[string]func(){"router": main})
}

// withCache gives the tests of a run one cache of compiled functions, and all runs that scripts/test.sh makes together
// the one that it names: to compile the engine of scripts takes seconds, and ten under the race detector.
type withCache struct{ m *testing.M }

// Run runs the tests.
func (w withCache) Run() int {
	if dir := os.Getenv("MILLRACE_TEST_CACHE"); dir != "" {
		if err := os.Setenv("XDG_CACHE_HOME", dir); err != nil {
			return 1
		}
		return w.m.Run()
	}
	dir, err := os.MkdirTemp("", "millrace-cache-")
	if err != nil {
		return w.m.Run()
	}
	defer os.RemoveAll(dir)
	if err := os.Setenv("XDG_CACHE_HOME", dir); err != nil {
		return 1
	}
	return w.m.Run()
}

// TestScript runs the command line as typed: testdata/script/*.txtar. Besides testscript's own commands
// there are
//
//	start NAME 'text' COMMAND...  run COMMAND in the background until the script ends; wait until it has
//	                              printed text (a regular expression); its first group becomes $NAME
//	finish NAME                   send SIGINT to it, wait, and want exit code 0
//	kill9 NAME                    kill it with SIGKILL, and wait
//	web NAME DIR                  serve a folder over HTTP until the script ends; its URL becomes $NAME
//	unweb NAME                    serve it no more
//	eventually 'text' COMMAND...  run COMMAND again until its output has text, for at most 20 s
//	code N COMMAND...             run COMMAND and want exit code N
func TestScript(t *testing.T) {
	testscript.Run(t, scriptParams(filepath.Join("testdata", "script")))
}

func scriptParams(dir string) testscript.Params {
	return testscript.Params{
		Dir: dir,
		Setup: func(e *testscript.Env) error {
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("XDG_CACHE_HOME", os.Getenv("XDG_CACHE_HOME"))
			e.Setenv("GOCACHE", goEnv("GOCACHE"))
			e.Setenv("GOMODCACHE", goEnv("GOMODCACHE"))
			e.Setenv("GOFLAGS", "-mod=mod")
			e.Setenv("GOPROXY", "off")
			root, err := filepath.Abs(filepath.Join("..", ".."))
			e.Setenv("ROOT", root)
			router, lookErr := exec.LookPath("router")
			e.Setenv("ROUTER", router)
			e.Values[webKey{}] = map[string]*httptest.Server{}
			e.Values[backgroundKey{}] = map[string]*background{}
			return errors.Join(err, lookErr)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"start": startCmd, "finish": finishCmd, "kill9": kill9Cmd, "eventually": eventuallyCmd, "code": codeCmd,
			"web": webCmd, "unweb": unwebCmd,
		},
	}
}

func goEnv(name string) string {
	out, err := exec.Command("go", "env", name).Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

type webKey struct{}

func webCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: web NAME DIR")
	}
	s := httptest.NewServer(http.FileServer(http.Dir(ts.MkAbs(args[1]))))
	ts.Defer(s.Close)
	ts.Setenv(args[0], s.URL)
	ts.Value(webKey{}).(map[string]*httptest.Server)[args[0]] = s
}

func unwebCmd(ts *testscript.TestScript, _ bool, args []string) {
	ts.Value(webKey{}).(map[string]*httptest.Server)[args[0]].Close()
}

type backgroundKey struct{}

// A background is a program that runs beside a script.
type background struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended and its output is read
	err  error         // of Wait, once done
}

// patience bounds every wait of a script.
const patience = time.Minute

func command(ts *testscript.TestScript, ctx context.Context, args []string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	if path := searchPath(os.Getenv("PATH"), args[0]); path != "" {
		cmd.Path, cmd.Err = path, nil
	}
	cmd.Dir = ts.MkAbs(".")
	for _, name := range []string{"HOME", "USER", "WORK", "PATH", "TMPDIR", "MILLRACE_URL", "MILLRACE_TOKEN", "HOOK", "HOOK_SECRET", "HOOK_TOKEN", "TARGET",
		"GOCACHE", "GOMODCACHE", "GOFLAGS", "GOPROXY", "CARGO_HOME", "RUSTUP_HOME"} {
		if v := ts.Getenv(name); v != "" {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	return cmd
}

func startCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: start NAME text COMMAND...")
	}
	name, want := args[0], regexp.MustCompile(args[1])
	cmd := command(ts, context.Background(), args[2:])
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	ts.Check(cmd.Start())
	b := &background{cmd: cmd, done: make(chan struct{})}
	ts.Value(backgroundKey{}).(map[string]*background)[name] = b
	found := make(chan string, 1)
	log, err := os.Create(ts.MkAbs(name + ".out"))
	ts.Check(err)
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer log.Close()
		s := bufio.NewScanner(r)
		s.Buffer(nil, 1<<20)
		told := false
		for s.Scan() {
			_, _ = log.WriteString(s.Text() + "\n") // for the script to look at
			if m := want.FindStringSubmatch(s.Text()); m != nil && !told {
				told = true
				found <- m[len(m)-1]
			}
		}
	}()
	go func() {
		b.err = cmd.Wait()
		w.Close()
		<-read
		close(b.done)
	}()
	ts.Defer(func() {
		_ = cmd.Process.Kill() // it may have ended already
		<-b.done
	})
	select {
	case v := <-found:
		ts.Setenv(name, v)
	case <-b.done:
		ts.Fatalf("%s ended (%v) before it printed %q:\n%s", name, b.err, args[1], ts.ReadFile(name+".out"))
	case <-time.After(patience):
		ts.Fatalf("%s did not print %q:\n%s", name, args[1], ts.ReadFile(name+".out"))
	}
}

func finishCmd(ts *testscript.TestScript, neg bool, args []string) {
	b := ts.Value(backgroundKey{}).(map[string]*background)[args[0]]
	if b == nil {
		ts.Fatalf("%s was not started", args[0])
	}
	ts.Check(b.cmd.Process.Signal(os.Interrupt))
	select {
	case <-b.done:
	case <-time.After(patience):
		ts.Fatalf("%s does not end:\n%s", args[0], ts.ReadFile(args[0]+".out"))
	}
	if (b.err == nil) == neg {
		ts.Fatalf("%s ended with %v:\n%s", args[0], b.err, ts.ReadFile(args[0]+".out"))
	}
}

func kill9Cmd(ts *testscript.TestScript, neg bool, args []string) {
	b := ts.Value(backgroundKey{}).(map[string]*background)[args[0]]
	if b == nil || neg {
		ts.Fatalf("usage: kill9 NAME, of what was started")
	}
	ts.Check(b.cmd.Process.Kill())
	<-b.done
}

func eventuallyCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: eventually text COMMAND...")
	}
	want := regexp.MustCompile(args[0])
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		out, err := command(ts, ctx, args[1:]).CombinedOutput()
		if want.Match(out) {
			return
		}
		if sleep(ctx, 50*time.Millisecond) != nil {
			ts.Fatalf("%s never printed %q, at last (%v):\n%s", strings.Join(args[1:], " "), args[0], err, out)
		}
	}
}

func codeCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N COMMAND...")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := command(ts, ctx, args[1:])
	out, _ := cmd.CombinedOutput() // the exit code says it
	if got := cmd.ProcessState.ExitCode(); strings.Compare(args[0], string(rune('0'+got))) != 0 {
		ts.Fatalf("exit code %d, want %s:\n%s", got, args[0], out)
	}
}
