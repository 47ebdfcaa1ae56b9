// Package millrace writes functions for the Millrace event router in Go. A function is a WASM module that
// is handed events and says of each what shall become of it:
//
//	package main
//
//	import millrace "github.com/millrace/millrace/sdk/go"
//
//	func init() { millrace.Handle(handle) }
//	func main() {}
//
//	func handle(e *millrace.Event, out *millrace.Results) {
//		if !millrace.Has(e.Data(), "total") {
//			out.Reject(422, "no total")
//			return
//		}
//		out.Pass()
//	}
//
// Build it with GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared -o f.wasm .
//
// A handler must say something about every event. One that returns in silence has not dropped the event:
// the router counts it as a failure and says so, because silence is how bugs lose events.
//
// A panic fails the event at work, alone. Results made before it are discarded. The instance is replaced,
// so nothing may be remembered from event to event except caches.
package millrace

import "time"

// A Handler decides about one event. The event and everything read from it are valid until it returns.
type Handler func(e *Event, out *Results)

// handler is what the guest's exports call: WASM has one entry point, so there is one of it.
var handler Handler

// Handle sets the function's handler. Call it from init: a module of this kind has no main.
func Handle(h Handler) { handler = h }

// A Feature is a part of the convention that not every router has.
type Feature uint32

// The features. Importing the packages kv, fetch and secret requires theirs; only replies are to be declared.
const (
	FeatureState   Feature = 1
	FeatureHTTP    Feature = 2
	FeatureReply   Feature = 4
	FeatureSecrets Feature = 8
)

// required is what the marker of the convention says. It is set while the module starts.
var required Feature

// Require declares features that the function cannot do without: a router that lacks one refuses the module
// instead of failing its events. Call it from init. It returns all that are required.
func Require(f Feature) Feature {
	required |= f
	return required
}

// Level says how much a log line matters.
type Level int32

// The levels.
const (
	Debug Level = iota
	Info
	Warn
	Error
)

// Log writes a line to the function's log, which is bounded in length and rate.
func Log(level Level, message string) { hostLog(level, message) }

// Config returns a value of the function's configuration. It asks the host: read what does not change
// once, in init.
func Config(key string) (string, bool) {
	buf := make([]byte, 256)
	n := hostConfig(key, buf)
	if n > int64(len(buf)) {
		buf = make([]byte, n)
		n = hostConfig(key, buf)
	}
	if n < 0 || n > int64(len(buf)) {
		return "", false
	}
	return string(buf[:n]), true
}

// Count adds to a counter of the function, which the router shows with its metrics.
func Count(name string, delta int64) { hostCount(name, delta) }

// Now is when the router received the event at work: the same in every attempt, so that a retry decides
// alike. During init it is 1970. time.Now says the same.
func Now() time.Time { return time.Unix(0, hostNow()).UTC() }

// Clock is the true time. What depends on it may come out differently in a retry.
func Clock() time.Time { return time.Unix(0, hostClock()).UTC() }

// Random fills p with bytes that are the same in every attempt at the event at work and unpredictable
// otherwise. crypto/rand reads the same stream; math/rand does not.
func Random(p []byte) { hostRandom(p) }
