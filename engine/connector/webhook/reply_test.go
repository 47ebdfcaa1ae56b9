package webhook

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// raw is a receiver that answers each request with bytes of the test's own, and closes if they say so.
func raw(t *testing.T, answer func(n int) string) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for n := 0; ; {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			br := bufio.NewReader(c)
			for {
				req, err := http.ReadRequest(br)
				if err != nil {
					break
				}
				_, _ = io.Copy(io.Discard, req.Body)
				text := answer(n)
				n++
				_, _ = io.WriteString(c, text)
				if !strings.Contains(text, "Content-Length") && !strings.Contains(text, "chunked") || strings.Contains(text, "close") {
					break
				}
			}
			c.Close()
		}
	}()
	return "http://" + ln.Addr().String()
}

func TestAnswersBecomeReplies(t *testing.T) {
	whole := strings.Repeat("x", event.MaxReply)
	length := func(body, head string) string {
		return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n%sContent-Length: %d\r\n\r\n%s", head, len(body), body)
	}
	for name, c := range map[string]struct {
		answer, want string
		fails        bool
	}{
		"plain":         {answer: length("hello", ""), want: "200 text/plain hello"},
		"created":       {answer: "HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok", want: "201  ok"},
		"no content":    {answer: "HTTP/1.1 204 No Content\r\nContent-Type: text/plain\r\n\r\n", want: "204 text/plain "},
		"chunked":       {answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", want: "200  abcde"},
		"until close":   {answer: "HTTP/1.1 200 OK\r\nContent-Type: a/b\r\n\r\nto the end", want: "200 a/b to the end"},
		"close":         {answer: length("bye", "Connection: close\r\n"), want: "200 text/plain bye"},
		"as long as ok": {answer: length(whole, ""), want: "200 text/plain " + whole},
		"too long":      {answer: length(whole+"x", ""), want: "502 text/plain; charset=utf-8 the receiver's answer has over 1048576 bytes and cannot be passed on\n"},
		"endless":       {answer: "HTTP/1.1 200 OK\r\n\r\n" + whole + whole, want: "502 text/plain; charset=utf-8 the receiver's answer has over 1048576 bytes and cannot be passed on\n"},
		"broken off":    {answer: "HTTP/1.1 200 OK\r\nContent-Length: 10\r\nConnection: close\r\n\r\nabc", want: "502 text/plain; charset=utf-8 the receiver's answer 200 broke off\n"},
		"encoded":       {answer: length("\x1f\x8b", "Content-Encoding: gzip\r\n"), want: "502 text/plain; charset=utf-8 the receiver's answer is encoded (\"gzip\") although no encoding was asked for\n"},
		"refused":       {answer: "HTTP/1.1 422 No\r\nContent-Length: 2\r\n\r\nno", want: "0  ", fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, Options{URL: raw(t, func(int) string { return c.answer }), Reply: true, Timeout: 5 * time.Second})
			for range 3 { // the connection stays fit, or is given up
				ds := delivery("i", order)
				ds[0].Reply = &event.Reply{}
				if err := s.Deliver(t.Context(), ds); (err != nil) != c.fails {
					t.Fatalf("delivered: %v", err)
				}
				if r := ds[0].Reply; fmt.Sprintf("%d %s %s", r.Status, r.ContentType, r.Data) != c.want {
					t.Fatalf("%d %q %d bytes %.100q", r.Status, r.ContentType, len(r.Data), r.Data)
				}
			}
			if err := s.Deliver(t.Context(), delivery("i", order)); (err != nil) != c.fails {
				t.Errorf("where nobody asks: %v", err)
			}
		})
	}
	if open(t, Options{URL: "http://localhost"}).Replies() || !open(t, Options{URL: "http://localhost", Reply: true}).Replies() {
		t.Error("Replies is not what the options say")
	}
}

// A reply is the caller's: the next delivery over the same connection does not change it.
func TestRepliesAreTheirOwn(t *testing.T) {
	s := open(t, Options{URL: raw(t, func(n int) string {
		return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Type: t/%d\r\n\r\nbody%d", n, n)
	}), Reply: true})
	var all []*event.Reply
	for range 5 {
		ds := delivery("i", order)
		ds[0].Reply = &event.Reply{}
		if err := s.Deliver(context.Background(), ds); err != nil {
			t.Fatal(err)
		}
		all = append(all, ds[0].Reply)
	}
	for i, r := range all {
		if string(r.Data) != fmt.Sprint("body", i) || r.ContentType != fmt.Sprint("t/", i) {
			t.Errorf("%d: %q %q", i, r.ContentType, r.Data)
		}
	}
}
