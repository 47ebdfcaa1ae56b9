package acceptance

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"
)

// memory reads a process's memory in bytes: VmRSS now, VmHWM at most.
func (r *router) memory(field string) int {
	r.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.cmd.Process.Pid))
	if err != nil {
		r.t.Fatal(err)
	}
	m := regexp.MustCompile(field + `:\s+(\d+) kB`).FindSubmatch(text)
	if m == nil {
		r.t.Fatalf("no %s in %s", field, text)
	}
	n, err := strconv.Atoi(string(m[1]))
	if err != nil {
		r.t.Fatal(err)
	}
	return n << 10
}

// The quickstart with 20,000 orders stays below 512 MiB, and everything gets where the rules send it.
func TestQuickstartWithin512MiB(t *testing.T) {
	const orders, perRequest = 20_000, 500
	rc := newReceiver(t, nil)
	rules, err := filepath.Abs("../examples/quickstart/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(t.TempDir(), "data")
	env := []string{"HOOK_URL=" + rc.URL + "/hook", "HOOK_SECRET=" + secret, "GOMEMLIMIT=384MiB"}
	r := serve(t, data, env, "--rules", rules, "--memory", "384MiB")
	first := r.memory("VmHWM")
	idle := r.memory("VmRSS")
	var large []string
	begin := time.Now()
	for n := 0; n < orders; n += perRequest {
		var body bytes.Buffer
		for i := n; i < n+perRequest; i++ {
			country, total := "US", 50+i%200
			if i%2 == 0 {
				country = "DE"
			}
			if country == "DE" && total > 100 {
				large = append(large, fmt.Sprintf("o-%d~big-eu-orders~0", i))
			}
			fmt.Fprintf(&body, `{"specversion":"1.0","id":"o-%d","source":"/shop","type":"order.created","data":{"order":%d,"total":%d,"country":%q,"email":"a%d@example.com","note":%q}}`+"\n",
				i, i, total, country, i, noise(i, 512))
		}
		r.publish("orders", linesType, body.Bytes())
	}
	published := time.Since(begin)
	eventually(t, time.Minute, func() error {
		if missing := rc.missing("/hook", large); missing != nil {
			return fmt.Errorf("the receiver lacks %v", missing)
		}
		return nil
	})
	r.settled(time.Minute, "big-eu-orders", "audit")
	if n := r.count("audit"); n != orders {
		t.Errorf("topic audit holds %d events; want %d", n, orders)
	}
	peak := r.memory("VmHWM")
	t.Logf("published %d orders in %s, delivered %d in %s; resident: %d MiB after the first start (%d MiB at most, compiling), %d MiB at the end, at most %d MiB",
		orders, published.Round(time.Millisecond), len(large), time.Since(begin).Round(time.Millisecond), idle>>20, first>>20, r.memory("VmRSS")>>20, peak>>20)
	if peak >= 512<<20 {
		t.Errorf("the router took %d MiB; want less than 512", peak>>20)
	}
	r.stop(20 * time.Second)

	r = serve(t, data, env, "--rules", rules, "--memory", "384MiB")
	t.Logf("resident after a start with %d events and a compiled function: %d MiB", 2*orders, r.memory("VmRSS")>>20)
	r.stop(20 * time.Second)

	r = serve(t, filepath.Join(t.TempDir(), "data"), nil)
	idle = r.memory("VmRSS")
	t.Logf("resident, idle, without rules: %d MiB", idle>>20)
	if idle >= 60<<20 {
		t.Errorf("an idle router takes %d MiB; want less than 60", idle>>20)
	}
	r.stop(20 * time.Second)
}
