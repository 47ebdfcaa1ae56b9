//go:build !wasip1

package kv

import (
	"strconv"
	"sync"
	"time"

	"github.com/millrace/millrace/sdk/go/internal/host"
)

// Outside a router, in a handler's own tests, the state is a map of this process.
var state = struct {
	sync.Mutex
	values map[string]entry
}{values: map[string]entry{}}

type entry struct {
	value   string
	expires time.Time // zero: never
}

func lookup(key string) (entry, bool) {
	e, ok := state.values[key]
	if ok && !e.expires.IsZero() && !time.Now().Before(e.expires) {
		delete(state.values, key)
		return entry{}, false
	}
	return e, ok
}

func get(key string, buf []byte) int64 {
	state.Lock()
	defer state.Unlock()
	e, ok := lookup(key)
	if !ok {
		return int64(host.NotFound)
	}
	if len(e.value) <= len(buf) {
		copy(buf, e.value)
	}
	return int64(len(e.value))
}

func put(key string, value []byte, ttl int64) int32 {
	state.Lock()
	defer state.Unlock()
	e := entry{value: string(value)}
	if ttl > 0 {
		e.expires = time.Now().Add(time.Duration(ttl) * time.Millisecond)
	}
	state.values[key] = e
	return 0
}

func del(key string) int32 {
	state.Lock()
	defer state.Unlock()
	delete(state.values, key)
	return 0
}

func add(key string, delta int64, sum *int64) int32 {
	state.Lock()
	defer state.Unlock()
	e, ok := lookup(key)
	n := int64(0)
	if ok {
		var err error
		if n, err = strconv.ParseInt(e.value, 10, 64); err != nil {
			return int32(host.BadArgument)
		}
	}
	*sum = n + delta
	e.value = strconv.FormatInt(*sum, 10)
	state.values[key] = e
	return 0
}
