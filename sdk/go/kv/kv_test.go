package kv

import (
	"bytes"
	"testing"
	"time"
)

func TestStateOutsideARouter(t *testing.T) {
	big := bytes.Repeat([]byte("x"), 1000) // beyond the first buffer
	if err := Put("k", big, 0); err != nil {
		t.Fatal(err)
	}
	if v, ok, err := Get("k"); !ok || err != nil || !bytes.Equal(v, big) {
		t.Errorf("%d bytes, %v, %v", len(v), ok, err)
	}
	if n, err := Add("n", 3); n != 3 || err != nil {
		t.Error(n, err)
	}
	if n, err := Add("n", -5); n != -2 || err != nil {
		t.Error(n, err)
	}
	if _, err := Add("k", 1); err == nil {
		t.Error("a text was added to")
	}
	if err := Delete("k"); err != nil {
		t.Error(err)
	}
	if _, ok, err := Get("k"); ok || err != nil {
		t.Error(ok, err)
	}
	if err := Put("short", nil, time.Nanosecond); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); ; {
		if _, ok, _ := Get("short"); !ok {
			return
		}
		if time.Now().After(end) {
			t.Fatal("a value outlives its time")
		}
	}
}
