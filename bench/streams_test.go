package main

import (
	"bufio"
	"context"
	"io"
	"net"
	"strings"
	"testing"
)

// A crowd counts an event when everyone has it, and the pass reaches everyone.
func TestCrowd(t *testing.T) {
	stdin, parent := io.Pipe()
	out, stdout := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- serveFan(context.Background(), stdin, stdout) }()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	addr, ok := listensAt(strings.TrimSpace(line))
	if !ok {
		t.Fatal(line)
	}
	c, err := gatherCrowd(t.Context(), 20, addr, "r", "r")
	if err != nil {
		t.Fatal(err)
	}
	control, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	passes := 0
	got := map[string]float64{}
	if err := c.run(t.Context(), func() float64 { return 1 }, func() error {
		passes++
		_, err := control.Write([]byte("g"))
		return err
	}, "x", "fan", func(name string, v float64) { got[name] = v }); err != nil {
		t.Fatal(err)
	}
	if passes != fanEvents || got["fan-all"] <= 0 || got["fan-cpu"] != 0 || c.got.Load() != 20 {
		t.Errorf("%d passes, %v, the last reached %d", passes, got, c.got.Load())
	}
	c.close()
	parent.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
