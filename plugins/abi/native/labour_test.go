package native_test

import (
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/plugins"
)

// What host functions do for a guest is the guest's time: a loop of calls, or one call with a million buffers,
// ends as a loop of its own does, and by its CPU time, long before its wall time.
func TestHostFunctionsWorkOnTheGuestsTime(t *testing.T) {
	h := newHost(t, plugins.Options{})
	module := cGuest(t, "labour.c")
	for name, what := range map[string]string{
		"random": "r", "random_get": "e", "config_get": "c", "secret_get": "s", "counter_add": "n", "kv_put": "p", "kv_get": "g",
		"fd_write of all memory": "w", "fd_write of nothing": "z", "poll_oneoff": "y", "path_open": "o",
	} {
		t.Run(name, func(t *testing.T) {
			f := open(t, h, module, event.Function{Allow: event.Allow{KV: true}, Limits: event.FunctionLimits{CPU: 40 * time.Millisecond, Wall: time.Minute}})
			start := time.Now()
			out := call(t, f, what)
			took := time.Since(start)
			if got := show(out); got != "0!deadline" || !strings.Contains(out.Failures[0].Err.Error(), "limits.cpu") || took > 20*time.Second {
				t.Errorf("%s %v after %s", got, out.Failures, took)
			}
			t.Logf("%s", took)
		})
	}
}
