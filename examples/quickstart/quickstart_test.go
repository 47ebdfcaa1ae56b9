package quickstart_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// terminals returns the commands of the README, one text for each block.
func terminals(t *testing.T) []string {
	t.Helper()
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	var blocks []string
	inside := false
	for line := range strings.Lines(string(readme)) {
		command, ok := strings.CutPrefix(line, "    ")
		if ok && !inside {
			blocks = append(blocks, "")
		}
		if inside = ok; ok {
			blocks[len(blocks)-1] += command
		}
	}
	return blocks
}

// A said collects what a command prints.
type said struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// until waits for a text.
func (s *said) until(t *testing.T, text string) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !strings.Contains(s.String(), text) {
		if time.Now().After(deadline) {
			t.Fatalf("no %q within 30s in\n%s", text, s)
		}
		<-tick.C
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// The commands of the README, as typed into a shell in a copy of this folder; only the two ports are others, since those of
// the README may be taken where the tests run, and curl is this test itself.
func TestReadmeAsTyped(t *testing.T) {
	blocks := terminals(t)
	if len(blocks) != 3 {
		t.Fatalf("the README has %d blocks of commands, not 3: %q", len(blocks), blocks)
	}
	dir, bin := t.TempDir(), t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(".")); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(bin, "router"), "../../cmd/router").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	hook, listen := freeAddress(t), freeAddress(t)
	ports := strings.NewReplacer("127.0.0.1:9000", hook, "127.0.0.1:8080", listen, "router serve ", "router serve --listen "+listen+" ")
	env := append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "MILLRACE_URL=http://"+listen)

	shell := func(script string) (*exec.Cmd, *said) {
		t.Helper()
		out := &said{}
		// exec as a shell does with the last command, so that the signal reaches the router and not a shell around it.
		lines := strings.Split(strings.TrimSpace(ports.Replace(script)), "\n")
		lines[len(lines)-1] = "exec " + lines[len(lines)-1]
		cmd := exec.Command("sh", "-ec", strings.Join(lines, "\n"))
		cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, env, out, out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd, out
	}
	running := func(script, until string) *said {
		t.Helper()
		cmd, out := shell(script)
		t.Cleanup(func() {
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Error(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("%s\nended with %v:\n%s", script, err, out)
			}
		})
		out.until(t, until)
		return out
	}
	received := running(blocks[0], "receiving at")
	served := running(blocks[1], "listen  http://")

	commands := strings.Split(strings.TrimSpace(blocks[2]), "\n")
	if len(commands) != 3 || !strings.HasPrefix(commands[2], "curl -s '") {
		t.Fatalf("the third terminal's commands are %q; want publish, pull and curl", commands)
	}
	var outputs []string
	for _, command := range commands[:2] {
		cmd, out := shell(command)
		if err := cmd.Wait(); err != nil {
			t.Fatalf("%s: %v\n%s\nthe router says\n%s", command, err, out, served)
		}
		outputs = append(outputs, out.String())
	}
	for i := 1; i <= 6; i++ {
		if id := fmt.Sprintf("order-%d", i); !strings.Contains(outputs[0], id) || strings.Contains(outputs[1], id) != (i != 5) {
			t.Errorf("%s: publish must print it, pull must where it was created\n%s\n%s", id, outputs[0], outputs[1])
		}
	}
	for _, id := range []string{"order-1~", "order-4~", "order-6~"} {
		received.until(t, id)
	}
	text := received.String()
	if strings.Count(text, `"email":"***"`) != 3 || strings.Contains(text, "@example.com") || strings.Count(text, "signature verified") != 3 {
		t.Errorf("the receiver must get orders 1, 4 and 6, verified and without address:\n%s", text)
	}
	checkAudit(t, strings.Trim(strings.TrimPrefix(ports.Replace(commands[2]), "curl -s "), "'"))
}

// checkAudit reads topic audit until it has all orders.
func checkAudit(t *testing.T, url string) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		resp, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		if err := resp.Body.Close(); err != nil {
			t.Fatal(err)
		}
		var answer struct {
			Events []struct {
				Data struct {
					Email    string
					Redacted bool
				}
			}
		}
		if err := json.Unmarshal(text, &answer); err != nil || resp.StatusCode != 200 {
			t.Fatalf("%s: %s %s", url, resp.Status, text)
		}
		if len(answer.Events) == 6 {
			for _, e := range answer.Events {
				if e.Data.Email != "***" || !e.Data.Redacted {
					t.Errorf("topic audit has %+v", e)
				}
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("topic audit has %d events, not 6: %s", len(answer.Events), text)
		}
	}
}
