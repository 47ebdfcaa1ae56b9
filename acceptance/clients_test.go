package acceptance

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The npm packages cloudevents and standardwebhooks are clients of the router: events published with the first come back
// equal over the API and as webhooks, and the second verifies what signs them.
func TestJavaScriptClients(t *testing.T) {
	t.Parallel()
	modules := npm(t)
	r := serve(t, filepath.Join(t.TempDir(), "data"), nil)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	node := exec.CommandContext(ctx, "node", filepath.Join("testdata", "clients.cjs"), r.url, secret)
	node.Env = append(os.Environ(), "NODE_PATH="+modules)
	out, err := node.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// 3 modes of 5 events: read back, at two webhooks, and verified but where the body is the text of binary mode.
	if got := strings.TrimSpace(string(out)); got != "ok 72" {
		t.Errorf("the script says %q; want ok 72", got)
	}
	r.stop(20 * time.Second)
}
