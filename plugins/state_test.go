package plugins

import (
	"strconv"
	"testing"
)

// A run that overwrites a key again and again makes the host remember what the runs before it left, and
// nothing of its own: a loop of kv_put would take all memory otherwise.
func TestStagingRemembersOneValueOfAKey(t *testing.T) {
	var s staging
	stage := func(key, value string) {
		t.Helper()
		if err := s.stage([]byte(key), []byte(value), 0, false); err != nil {
			t.Fatal(err)
		}
	}
	stage("a", "first")
	stage("b", "other")
	s.keep()
	for i := range 1000 {
		stage("a", strconv.Itoa(i))
		stage("c", strconv.Itoa(i))
	}
	if len(s.undo) != 1 || len(s.list) != 3 {
		t.Errorf("%d values to go back to, %d keys; want 1 and 3", len(s.undo), len(s.list))
	}
	s.discard()
	s.keep()
	if len(s.list) != 2 || string(s.list[0].Value) != "first" || s.bytes != len("a"+"first"+"b"+"other") {
		t.Errorf("%+v, %d bytes", s.list, s.bytes)
	}
	stage("a", "second")
	s.keep()
	stage("a", "third")
	s.discard()
	if string(s.list[0].Value) != "second" || s.bytes != len("a"+"second"+"b"+"other") {
		t.Errorf("%+v, %d bytes", s.list, s.bytes)
	}
}
