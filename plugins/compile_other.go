//go:build !linux

package plugins

import "time"

// limitProcess does nothing here: the parent's deadline bounds the time, the module's own bounds the rest.
func limitProcess(time.Duration, uint64) error { return nil }
