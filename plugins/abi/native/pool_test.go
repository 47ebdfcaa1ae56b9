package native_test

import (
	"context"
	"fmt"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

func memoryOf(all []*plugins.Function) (instances int, bytes int64) {
	for _, f := range all {
		s := f.Stats()
		instances += s.Instances
		bytes += s.Memory
	}
	return instances, bytes
}

// All functions together stay within their memory: who was not called for longest gives way, and comes
// back when it is called.
func TestFunctionsShareMemory(t *testing.T) {
	const budget = 32 << 20 // an instance of this guest has some 7 MiB
	h := newHost(t, plugins.Options{Memory: budget})
	module := cGuest(t, "hostile.c")
	var all []*plugins.Function
	for i := range 12 {
		all = append(all, open(t, h, module, event.Function{Name: fmt.Sprintf("f%d", i)}))
	}
	if n, bytes := memoryOf(all); bytes > budget || n == 0 || n == 12 {
		t.Errorf("%d instances with %d bytes", n, bytes)
	}
	if all[0].Stats().Instances != 0 || all[11].Stats().Instances != 1 {
		t.Error("the first one opened is there, or the last is not")
	}
	for _, f := range all {
		if got := show(call(t, f, "p", "t", "d")); got != "0:PASS 1!trap 2:DROP" {
			t.Error(got)
		}
	}
	if _, bytes := memoryOf(all); bytes > budget {
		t.Errorf("%d bytes after calls", bytes)
	}
}

// Where there is memory for one instance, calls take turns, and every one gets its turn.
func TestCallsTakeTurnsForMemory(t *testing.T) {
	h := newHost(t, plugins.Options{Memory: 1, Instances: 4})
	module := cGuest(t, "hostile.c")
	all := []*plugins.Function{open(t, h, module, event.Function{Name: "a"}), open(t, h, module, event.Function{Name: "b"})}
	var g sync.WaitGroup
	for i := range 8 {
		g.Go(func() {
			for range 10 {
				if got := show(call(t, all[i%2], "p", "t")); got != "0:PASS 1!trap" {
					t.Error(got)
				}
			}
		})
	}
	g.Wait()
	if n, _ := memoryOf(all); n != 0 {
		t.Errorf("%d instances are kept where there is no room for one", n)
	}
}

// What nobody calls is given up, machine code too, and comes back by itself.
func TestIdleFunctionsAreGivenUp(t *testing.T) {
	h := newHost(t, plugins.Options{Idle: 10 * time.Millisecond, Dir: t.TempDir()})
	f := open(t, h, goGuest(t, quickstartDir), event.Function{})
	deadline := time.Now().Add(20 * time.Second)
	for f.Stats().Instances > 0 || f.Compiled() {
		if time.Now().After(deadline) {
			t.Fatalf("%+v, compiled %v", f.Stats(), f.Compiled())
		}
		time.Sleep(time.Millisecond) // polls: there is nothing to wait on
	}
	start := time.Now()
	out := call(t, f, `{"total":1}`)
	if got := show(out); got != "0:PASS" {
		t.Error(got)
	}
	t.Logf("back from the compile cache in %s", time.Since(start))
}

// A call's events go to the guest in runs that its pace makes about a millisecond long.
func TestRunsFollowThePace(t *testing.T) {
	f := hostile(t, plugins.Options{Instances: 1}, event.Function{})
	runs := func(events int, data string) (n, largest uint32) {
		c := batch(events, data)
		var out plugins.Outcome
		for range 3 {
			if err := f.Call(context.Background(), c, &out); err != nil {
				t.Fatal(err)
			}
		}
		last := uint32(0)
		for i := range out.Results {
			if size := out.Results[i].Arg; size != last || i == 0 {
				n, last = n+1, size
			}
			largest = max(largest, last)
		}
		return n, largest
	}
	if _, largest := runs(600, "n"); largest != 256 {
		t.Errorf("fast events go %d at once; want 256", largest)
	}
	if _, largest := runs(60, "nJ100000"); largest > 32 {
		t.Errorf("slow events go %d at once; want some", largest)
	}
}

// A stack is host memory beyond the memory limit, and stays as deep as it ever was: who recursed deep is not kept.
func TestDeepStacksAreNotKept(t *testing.T) {
	h := newHost(t, plugins.Options{})
	module := guestOf(t, "deep.wat", func(out string) *exec.Cmd { return exec.Command("wat2wasm", "testdata/deep.wat", "-o", out) })
	for _, c := range []struct {
		depth string
		kept  int
	}{{"1000", 1}, {"800000", 0}} {
		f := open(t, h, module, event.Function{Config: map[string]string{"depth": c.depth}, Name: "deep" + c.depth})
		if got := show(call(t, f, "p")); got != "0:PASS" {
			t.Fatal(got)
		}
		if s := f.Stats(); s.Instances != c.kept {
			t.Errorf("depth %s: %d instances are kept, want %d", c.depth, s.Instances, c.kept)
		}
	}
}
