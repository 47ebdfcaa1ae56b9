// Command faults is a guest in Go that fails in Go's own ways.
package main

import (
	"crypto/rand"
	"time"

	millrace "github.com/millrace/millrace/sdk/go"
)

var kept [][]byte

func init() { millrace.Handle(handle) }
func main() {}

func handle(e *millrace.Event, out *millrace.Results) {
	switch string(e.Data()) {
	case "panic":
		panic("oh no")
	case "oom":
		for {
			kept = append(kept, make([]byte, 8<<20))
		}
	case "huge":
		kept = append(kept, make([]byte, 1<<30))
	case "silent":
	case "see":
		var b [4]byte
		_, _ = rand.Read(b[:])
		out.Replace(append(b[:], time.Now().UTC().Format(time.RFC3339)...), millrace.Topic("audit"),
			millrace.Extension("region", "us"), millrace.Unset("subject"))
	default:
		out.Pass()
	}
}
