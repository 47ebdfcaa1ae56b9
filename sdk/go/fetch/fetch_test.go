package fetch

import (
	"encoding/hex"
	"errors"
	"testing"
	"time"

	millrace "github.com/millrace/millrace/sdk/go"
)

func TestEncoding(t *testing.T) {
	r := Request{Method: "POST", URL: "http://a/", Headers: []Header{{"x-a", "1"}, {"b", ""}}, Body: []byte("hi"), Timeout: 1500 * time.Millisecond}
	b, err := r.encode()
	const want = "0100040009000000" + "0d00000002000000dc050000" + "504f5354" + "687474703a2f2f612f" + "782d613a20310d0a" + "623a200d0a" + "6869"
	if got := hex.EncodeToString(b); got != want || err != nil {
		t.Errorf("got  %s %v\nwant %s", got, err, want)
	}
	for _, h := range []Header{{"a", "1\r\nb: 2"}, {"a\n", ""}, {"a:b", ""}, {"", "v"}} {
		r.Headers = []Header{h}
		if _, err := r.encode(); !errors.Is(err, millrace.ErrBadArgument) {
			t.Errorf("%q: %v", h, err)
		}
	}
	got, err := decode([]byte("\x01\x00\xc9\x00\x16\x00\x00\x00\x02\x00\x00\x00Content-Type: a/b\r\nx:1ok"))
	if err != nil || got.Status != 201 || got.Header("content-type") != "a/b" || got.Header("X") != "1" || string(got.Body) != "ok" {
		t.Errorf("%+v %v", got, err)
	}
	for _, s := range []string{"", "\x02\x00\xc8\x00\x00\x00\x00\x00\x00\x00\x00\x00", "\x01\x00\xc8\x00\x05\x00\x00\x00\x00\x00\x00\x00a"} {
		if _, err := decode([]byte(s)); err == nil {
			t.Errorf("%q is taken", s)
		}
	}
	if _, err := Do(Request{URL: "http://a/"}); !errors.Is(err, millrace.ErrDenied) {
		t.Errorf("outside a router: %v", err)
	}
}
