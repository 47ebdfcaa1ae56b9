package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Every row's values are measured by exactly one measurement, and what one needs stands before it.
func TestRowsAreMeasured(t *testing.T) {
	all := measurements()
	given := map[string]string{}
	for _, m := range all {
		for _, v := range m.gives {
			if given[v] != "" {
				t.Errorf("%s and %s both give %s", given[v], m.name, v)
			}
			given[v] = m.name
		}
	}
	keys := map[string]bool{}
	for _, r := range rows() {
		if keys[r.key] {
			t.Errorf("two rows have the key %s", r.key)
		}
		keys[r.key] = true
		if _, err := needed([]row{r}, all); err != nil {
			t.Errorf("row %s: %v", r.key, err)
		}
	}
	run, err := needed(rows(), all)
	if err != nil || len(run) != len(all) {
		t.Errorf("all rows need %d of %d measurements: %v", len(run), len(all), err)
	}
}

// One row alone takes what it needs, directly and through others, and nothing else.
func TestNeeded(t *testing.T) {
	m := func(name string, needs ...string) measurement {
		return measurement{name: name, gives: []string{name}, needs: needs}
	}
	names := func(ms []measurement) (s []string) {
		for _, m := range ms {
			s = append(s, m.name)
		}
		return s
	}
	all := []measurement{m("a"), m("b"), m("c", "a"), m("d", "c"), m("e")}
	run, err := needed([]row{{values: []string{"d"}}}, all)
	if got := strings.Join(names(run), " "); err != nil || got != "a c d" {
		t.Errorf("d takes %q, %v", got, err)
	}
	if _, err := needed([]row{{values: []string{"x"}}}, all); err == nil {
		t.Error("a value that nothing measures is accepted")
	}
	if _, err := needed([]row{{values: []string{"b"}}}, []measurement{m("b", "a"), m("a")}); err == nil {
		t.Error("a measurement before what it needs is accepted")
	}
}

func lineOf(t *testing.T, v *values, r row) line {
	t.Helper()
	l := v.line(r)
	if l.Key != r.key {
		t.Fatalf("line %+v", l)
	}
	return l
}

func TestLines(t *testing.T) {
	v := newValues()
	for _, x := range []float64{100, 50, 90} {
		v.put("limit", x)
	}
	for _, x := range []float64{60, 20, 54} {
		v.put("figure", x)
	}
	r := row{key: "k", name: "a row", values: []string{"figure", "limit"}, figure: value("figure"), limit: value("limit"), show: rate, floor: 0.4, aim: 0.6}
	l := lineOf(t, v, r)
	if l.Figure != 54 || l.Limit != 90 || l.Ratio != 0.6 || l.Low != 0.4 || l.High != 0.6 || l.Met != "aim" {
		t.Errorf("line %+v", l)
	}
	for _, c := range []struct {
		ratio, floor, aim float64
		lower             bool
		want              string
	}{
		{0.5, 0.4, 0.6, false, "floor"}, {0.3, 0.4, 0.6, false, "no"}, {0.6, 0.4, 0.6, false, "aim"}, {0.6, 0, 0, false, ""},
		{2, 2.4, 2.05, true, "aim"}, {2.2, 2.4, 2.05, true, "floor"}, {2.5, 2.4, 2.05, true, "no"}, {0.9, 1, 0, true, "yes"}, {1.1, 1, 0, true, "no"},
	} {
		if got := met(c.ratio, row{floor: c.floor, aim: c.aim, lower: c.lower}); got != c.want {
			t.Errorf("met(%+v) = %q", c, got)
		}
	}
	// A failed measurement leaves its row empty, says why, and spoils the run; what is only missing here does not.
	failing := measurement{name: "figures", gives: []string{"figure"}}
	for why, failed := range map[error]int{errors.New("it broke"): 1, errMissing: 0} {
		v.fail(failing, why)
		rep := v.report([]row{r}, []measurement{failing}, options{rounds: 3, seconds: 2})
		if len(rep.Failed) != failed || rep.Lines[0].Met != "" || rep.Lines[0].Note != why.Error() {
			t.Errorf("%v: %+v", why, rep)
		}
		var text, doc bytes.Buffer
		if err := rep.print(&text); err != nil || !strings.Contains(text.String(), why.Error()) {
			t.Errorf("%v: %s", err, &text)
		}
		if err := rep.printJSON(&doc); err != nil || !json.Valid(doc.Bytes()) {
			t.Errorf("%v: %s", err, &doc)
		}
	}
	if !v.failed(measurement{name: "later", gives: []string{"later"}, needs: []string{"figure"}}) || v.notes["later"] == nil {
		t.Error("what needs a failed measurement is made all the same")
	}
}

func TestAnswers(t *testing.T) {
	head, body := "HTTP/1.1 202 Accepted\r\nContent-Length: 5\r\n\r\n", "hello"
	for in, want := range map[string]int{head + body: len(head) + 5, head + "he": len(head) + 5, head: len(head) + 5,
		"HTTP/1.1 204 No Content\r\nX: y\r\n\r\n": 33, head[:30]: 0, "": 0} {
		if size, ok, err := answerSize([]byte(in)); err != nil || ok != (want > 0) || size != want {
			t.Errorf("answerSize(%q) = %d, %v, %v, want %d", in, size, ok, err, want)
		}
	}
	for _, bad := range []string{"HTTP/1.1 200 OK\r\nX: y\r\n\r\n", "SSH-2.0 hello there\r\n\r\n"} {
		if _, _, err := answerSize([]byte(bad)); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	for in, want := range map[string]bool{"+OK\r\n": true, ":1\r\n": true, "$3\r\nabc\r\n": true, "$3\r\nab": false, "$15\r\n": false, "": false, "+O": false} {
		if done, err := respAnswer([]byte(in)); done != want || err != nil {
			t.Errorf("respAnswer(%q) = %v, %v", in, done, err)
		}
	}
	if _, err := respAnswer([]byte("-ERR no\r\n")); err == nil || !strings.Contains(err.Error(), "ERR no") {
		t.Errorf("an error of Redis: %v", err)
	}
	if got := string(respCommand("XADD", "s", "*")); got != "*3\r\n$4\r\nXADD\r\n$1\r\ns\r\n$1\r\n*\r\n" {
		t.Errorf("command %q", got)
	}
	m := parseMetrics("# HELP a b\na 1\nb{t=\"x y\"} 2.5e3\nbroken\n")
	if m["a"] != 1 || m[`b{t="x y"}`] != 2500 || len(m) != 2 {
		t.Errorf("metrics %v", m)
	}
}

// Events have the size that is stated, are JSON, and keep their number through the wire's wrapping.
func TestEvents(t *testing.T) {
	for _, seed := range []int{0, 7, 123456} {
		b := eventData(seed)
		if n, ok := numberIn(append([]byte(`{"specversion":"1.0","data":`), b...)); len(b) != eventBytes || !json.Valid(b) || !ok || n != seed {
			t.Errorf("event %d: %d bytes, number %d %v, valid %v", seed, len(b), n, ok, json.Valid(b))
		}
	}
	if lines := bytes.Count(batchData(100, 3), []byte("\n")); lines != 100 {
		t.Errorf("a batch has %d lines", lines)
	}
	if _, ok := numberIn([]byte(`{"seq":"12`)); ok {
		t.Error("a number that is cut off is taken")
	}
}

// Numbered posts reach the do-nothing server, which notes each on the board; it ends when its parent does.
func TestNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "board")
	b, err := openBoard(path)
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	stdin, parent, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	said, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer parent.Close()
	wg.Go(func() {
		defer out.Close()
		if err := serveNothing(context.Background(), []string{path}, stdin, out); err != nil {
			t.Error(err)
		}
	})
	line := make([]byte, 200)
	n, err := said.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	addr, ok := listensAt(strings.TrimSpace(string(line[:n])))
	if !ok {
		t.Fatalf("it said %q", line[:n])
	}
	var posters []*poster
	for i := range 4 {
		p, err := newPoster(t.Context(), addr, postRequest(addr, "/", "application/json", eventData(i)))
		if err != nil {
			t.Fatal(err)
		}
		defer p.conn.Close()
		posters = append(posters, p)
	}
	b.watch(true)
	sent, err := paced(t.Context(), posters, 50, 5000)
	if err != nil {
		t.Fatal(err)
	}
	for i := range sent {
		if came := b.slots[i].Load(); came < sent[i] {
			t.Errorf("event %d came at %d, sent at %d", i, came, sent[i])
		}
	}
	if got := b.count.Load(); got != 50 {
		t.Errorf("the board counts %d", got)
	}
}

// The clock of a closed load starts after the warm-up, and what fails ends it with its error.
func TestClosed(t *testing.T) {
	var open, closes atomic.Int64
	p, err := closed(t.Context(), 3, window{20 * time.Millisecond, ownCPU}, func(int) (worker, error) {
		open.Add(1)
		return worker{do: func() error { return sleep(t.Context(), time.Millisecond) }, close: func() { closes.Add(1) }}, nil
	})
	if err != nil || p.perSecond <= 0 || p.perSecond > 3000 || open.Load() != 3 || closes.Load() != 3 {
		t.Errorf("%+v, %v, %d opened, %d closed", p, err, open.Load(), closes.Load())
	}
	broken := errors.New("it broke")
	begin := time.Now()
	_, err = closed(t.Context(), 3, window{d: time.Minute}, func(i int) (worker, error) {
		return worker{do: func() error {
			if i == 1 {
				return broken
			}
			return nil
		}, close: func() {}}, nil
	})
	if !errors.Is(err, broken) || time.Since(begin) > 30*time.Second {
		t.Errorf("%v after %s", err, time.Since(begin))
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, err = closed(ctx, 1, window{d: time.Minute}, func(int) (worker, error) {
		return worker{do: func() error { cancel(); return nil }, close: func() {}}, nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// A refusal is an error that shows the answer.
func TestRefused(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		c, err := ln.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		_, _ = c.Read(make([]byte, 8<<10))
		_, _ = c.Write([]byte("HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbu"))
		_, _ = c.Write([]byte("sy"))
	})
	p, err := newPoster(t.Context(), ln.Addr().String(), postRequest("x", "/", "text/plain", []byte("hi")))
	if err != nil {
		t.Fatal(err)
	}
	defer p.conn.Close()
	if err := p.post(); err == nil || !strings.Contains(err.Error(), "503") || !strings.Contains(err.Error(), "busy") {
		t.Errorf("post: %v", err)
	}
}

func TestOptions(t *testing.T) {
	for _, args := range [][]string{{"-rounds", "0"}, {"-seconds", "0"}, {"-seconds", "NaN"}, {"-backlog", "5"}, {"more"}, {"-no-such"}} {
		var out, errs bytes.Buffer
		if code := doMain(t.Context(), args, nil, &out, &errs); code != 2 || errs.Len() == 0 {
			t.Errorf("%v: code %d, %q", args, code, &errs)
		}
	}
	var out, errs bytes.Buffer
	if code := doMain(t.Context(), []string{"-only", "list"}, nil, &out, &errs); code != 0 || !strings.Contains(out.String(), "accept-64") {
		t.Errorf("list: code %d, %s%s", code, &out, &errs)
	}
	errs.Reset()
	if code := doMain(t.Context(), []string{"-only", "acept"}, nil, &out, &errs); code != 1 || !strings.Contains(errs.String(), `"acept"`) {
		t.Errorf("unknown row: code %d, %s", code, &errs)
	}
	if o, err := parseOptions([]string{"-quick"}, &out, &errs); err != nil || o.rounds != 1 || o.seconds > 0.5 {
		t.Errorf("quick: %+v, %v", o, err)
	}
}
