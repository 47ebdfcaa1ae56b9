package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/valyala/fasthttp"
)

// nothingCommand as first argument makes this program the do-nothing server.
const nothingCommand = "nothing"

// serveNothing answers every POST with 202 until stdin or ctx ends. It counts, and where the board asks for it notes
// when which event came: the one receiver serves as limit and as target of webhooks.
func serveNothing(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	if len(args) != 1 {
		return errors.New("want the path of the board")
	}
	b, err := openBoard(args[0])
	if err != nil {
		return err
	}
	defer b.close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	srv := &fasthttp.Server{Handler: b.receive, NoDefaultServerHeader: true, NoDefaultDate: true, MaxRequestBodySize: 32 << 20}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	fmt.Fprintf(stdout, "listen %s\n", ln.Addr())
	parent := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, stdin) // ends with the parent
		close(parent)
	}()
	select {
	case <-parent:
	case <-ctx.Done():
	case err := <-served:
		return err
	}
	return ln.Close() // open connections end with the process
}

// listensAt finds the address in the do-nothing server's first line.
func listensAt(line string) (string, bool) {
	addr, ok := bytes.CutPrefix([]byte(line), []byte("listen "))
	return string(addr), ok
}

// A board is memory that this process and the receiver share: how many events came, and when which event did.
type board struct {
	mem   []byte
	count *atomic.Int64  // events
	note  *atomic.Int64  // 1: look for numbers
	slots []atomic.Int64 // when an event came, Unix ns, by its number; 0: not yet
}

const boardSlots = 1 << 20

func openBoard(path string) (*board, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	const size = (8 + boardSlots) * 8
	if err := f.Truncate(size); err != nil {
		return nil, err
	}
	mem, err := syscall.Mmap(int(f.Fd()), 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	words := unsafe.Slice((*atomic.Int64)(unsafe.Pointer(&mem[0])), size/8) // a mapping is page-aligned
	return &board{mem, &words[0], &words[4], words[8:]}, nil
}

func (b *board) close() { _ = syscall.Munmap(b.mem) }

// watch begins (on) or ends noting when events come; beginning forgets what was noted.
func (b *board) watch(on bool) {
	if on {
		for i := range b.slots {
			b.slots[i].Store(0)
		}
		b.note.Store(1)
		return
	}
	b.note.Store(0)
}

func (b *board) receive(ctx *fasthttp.RequestCtx) {
	if b.note.Load() == 1 {
		if n, ok := numberIn(ctx.PostBody()); ok && n < len(b.slots) {
			b.slots[n].CompareAndSwap(0, time.Now().UnixNano())
		}
	}
	events := 1
	if bytes.HasPrefix(ctx.Request.Header.ContentType(), []byte("application/cloudevents-batch")) {
		events = bytes.Count(ctx.PostBody(), []byte(`{"specversion":"1.0"`))
	}
	b.count.Add(int64(events))
	ctx.SetStatusCode(fasthttp.StatusAccepted)
}

// numberMark stands before an event's number, numberDigits long, in its data.
const (
	numberMark   = `"seq":"`
	numberDigits = 12
)

// numberIn finds an event's number in its data or in what wraps them.
func numberIn(body []byte) (int, bool) {
	i := bytes.Index(body, []byte(numberMark))
	if i < 0 || len(body) < i+len(numberMark)+numberDigits {
		return 0, false
	}
	n, err := strconv.Atoi(string(body[i+len(numberMark):][:numberDigits]))
	return n, err == nil && n >= 0
}
