package acceptance

import (
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// `router demo` needs nothing but itself, shows every stop of an event's way, and exits with 0.
func TestDemo(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	demo := exec.CommandContext(ctx, routerBinary, "demo")
	demo.Env = []string{"PATH=/nonexistent", "TMPDIR=" + t.TempDir()} // no toolchain, no home
	demo.Dir = t.TempDir()
	out, err := demo.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	rest := string(out)
	for _, stop := range []string{
		"\n1  Published over HTTP", "order-6 at ",
		"\n2  Which subscriptions take an order, and why",
		"\n3  Delivered to the webhook: filtered, redacted by the function, signed", "signature verified", `"email":"***"`,
		"\n4  Pulled from the queue", "order-1 order-2 order-3 order-4 order-6",
		"\n5  Streamed over SSE from topic audit", `"redacted":true`,
		"\n6  A delivery whose receiver failed twice is tried again", "answered [503 503 204], delivered at attempt 3",
		"\n7  A delivery that fails every time ends in the dead-letter topic", "order-6  reason attempts, code 503, after 4 attempts",
		"\nEverything arrived as it should.",
	} {
		_, after, ok := strings.Cut(rest, stop)
		if !ok {
			t.Fatalf("the demo does not show %q after the stops before it:\n%s", stop, out)
		}
		rest = after
	}
}
