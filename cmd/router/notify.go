package main

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// A notifier tells systemd how this process is (sd_notify(3)): of a unit with Type=notify, others wait until it is ready, and
// one that falls silent is started again.
type notifier struct {
	socket string        // "": nobody listens
	watch  time.Duration // between two signs of life; 0: none are wanted
}

func newNotifier(env func(string) string) notifier {
	n := notifier{socket: env("NOTIFY_SOCKET")}
	if us, err := strconv.ParseInt(env("WATCHDOG_USEC"), 10, 64); err == nil && us > 0 {
		n.watch = time.Duration(us) * time.Microsecond / 2
	}
	return n
}

// tell sends lines such as "READY=1".
func (n notifier) tell(lines ...string) error {
	if n.socket == "" {
		return nil
	}
	path := n.socket
	if strings.HasPrefix(path, "@") { // a name that is not in the file system
		path = "\x00" + path[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("tell systemd: %w", err)
	}
	defer c.Close()
	if _, err := c.Write([]byte(strings.Join(lines, "\n"))); err != nil {
		return fmt.Errorf("tell systemd: %w", err)
	}
	return nil
}

// live tells that the process is ready, then gives signs of life until ctx ends, as long as alive says so; at last that
// it stops.
func (n notifier) live(ctx context.Context, alive func() bool) error {
	if err := n.tell("READY=1"); err != nil {
		return err
	}
	defer func() { _ = n.tell("STOPPING=1") }()
	if n.socket == "" || n.watch == 0 {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(n.watch)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if alive() {
				_ = n.tell("WATCHDOG=1") // one that is lost is not the last
			}
		}
	}
}
