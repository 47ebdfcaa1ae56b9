package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// sickReceiver takes requests and answers one byte of answer a second.
func sickReceiver(t *testing.T, answer string) (port int, heal func()) {
	t.Helper()
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	end := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { _, _ = io.Copy(io.Discard, c) })
			wg.Go(func() {
				defer c.Close()
				second := time.NewTicker(time.Second)
				defer second.Stop()
				for i := 0; ; i++ {
					select {
					case <-end:
						return
					case <-second.C:
					}
					if i < len(answer) {
						if _, err := io.WriteString(c, answer[i:i+1]); err != nil {
							return
						}
					}
				}
			})
		}
	})
	heal = sync.OnceFunc(func() {
		close(end)
		_ = l.Close()
		wg.Wait()
	})
	t.Cleanup(heal)
	return l.Addr().(*net.TCPAddr).Port, heal
}

// Ninety fast receivers do not notice that five others drip a byte a second and five never answer. How exactly that
// holds is measured (`go run ./bench -only slow-p99,slow-rate`); here the time that a slow one takes would show.
func TestSlowNeverHurtsFast(t *testing.T) {
	const events, fast = 10, 90
	var even, mixed atomic.Int64
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/even") {
			even.Add(1)
		} else {
			mixed.Add(1)
		}
	}))
	defer receiver.Close()
	drip, healDrip := sickReceiver(t, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	hole, healHole := sickReceiver(t, "")
	var rules strings.Builder
	rules.WriteString("topics: {even: {}, mixed: {}}\nsubscriptions:\n")
	sub := func(topic string, i int, url string) {
		fmt.Fprintf(&rules, "  %s-%d: {topic: %s, deadLetter: dead, deliver: {webhook: {url: %q}}}\n", topic, i, topic, url)
	}
	for i := range fast {
		sub("even", i, receiver.URL+"/even")
		sub("mixed", i, receiver.URL+"/mixed")
	}
	for i := range 5 {
		sub("even", fast+i, receiver.URL+"/even")
		sub("even", fast+5+i, receiver.URL+"/even")
		sub("mixed", fast+i, fmt.Sprintf("http://127.2.1.%d:%d/", i+1, drip))
		sub("mixed", fast+5+i, fmt.Sprintf("http://127.2.2.%d:%d/", i+1, hole))
	}
	p := startProcess(t, rules.String())
	burst := func(topic string, count *atomic.Int64, want int64) time.Duration {
		began := time.Now()
		p.must(202, "POST", "/v1/topics/"+topic+"/events", "application/x-ndjson", strings.Repeat("{}\n", events))
		until(t, fmt.Sprintf("all of %s are delivered", topic), func() bool { return count.Load() >= want })
		return time.Since(began)
	}
	burst("even", &even, events*(fast+10)) // connections are made
	all := burst("even", &even, 2*events*(fast+10))
	burst("mixed", &mixed, events*fast)
	beside := burst("mixed", &mixed, 2*events*fast) // while the slow ones are at their first
	t.Logf("%d deliveries: %s where all are fast, %s beside ten slow ones", events*fast, all, beside)
	if beside > 2*all+4*time.Second {
		t.Errorf("beside slow receivers the fast ones take %s, else %s", beside, all)
	}
	healDrip()
	healHole()
}
