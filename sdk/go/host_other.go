//go:build !wasip1

package millrace

import (
	"crypto/rand"
	"os"
	"time"
)

// Outside a router, in a handler's own tests, the host is this process: the log is standard error,
// configuration is the environment, time and randomness are the machine's.

func hostLog(_ Level, s string) { _, _ = os.Stderr.WriteString(s + "\n") }

func hostConfig(key string, buf []byte) int64 {
	v, ok := os.LookupEnv(key)
	if !ok {
		return -1
	}
	if len(v) <= len(buf) {
		copy(buf, v)
	}
	return int64(len(v))
}

func hostCount(string, int64) {}

func hostNow() int64   { return time.Now().UnixNano() }
func hostClock() int64 { return time.Now().UnixNano() }

func hostRandom(p []byte) { _, _ = rand.Read(p) } // never fails

// word is the eight bytes from at on.
func word(doc []byte, at int) uint64 { return le.Uint64(doc[at:]) }
