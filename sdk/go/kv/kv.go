// Package kv is a function's state: values by key, which belong to the function's name and outlive its
// versions. Writes take effect with the function's results and the position in the topic, or not at all, so
// that a retry never applies one twice. Importing it requires a router that keeps state.
package kv

import (
	"errors"
	"time"

	millrace "github.com/millrace/millrace/sdk/go"
	"github.com/millrace/millrace/sdk/go/internal/host"
)

var _ = millrace.Require(millrace.FeatureState)

// Get returns a value, and false where there is none or it has expired. The error is a millrace.HostError.
func Get(key string) (value []byte, ok bool, err error) {
	value, err = host.Read(func(buf []byte) int64 { return get(key, buf) })
	if errors.Is(err, host.NotFound) {
		return nil, false, nil
	}
	return value, err == nil, err
}

// Put stores a value, for a while or, with 0, until it is deleted. A fraction of a millisecond counts as one.
func Put(key string, value []byte, ttl time.Duration) error {
	ms := max(ttl, 0) / time.Millisecond
	if ttl > 0 && ttl%time.Millisecond != 0 {
		ms++
	}
	return host.Code(put(key, value, int64(ms)))
}

// Delete removes a value. That there is none is no error.
func Delete(key string) error {
	if err := host.Code(del(key)); !errors.Is(err, host.NotFound) {
		return err
	}
	return nil
}

// Add adds to a number, 0 if there is none, and returns the sum.
func Add(key string, delta int64) (int64, error) {
	var sum int64
	if err := host.Code(add(key, delta, &sum)); err != nil {
		return 0, err
	}
	return sum, nil
}
