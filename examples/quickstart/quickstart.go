// Package quickstart carries the files of the quickstart in the binary, so that `router demo` needs nothing
// else to run.
package quickstart

import "embed"

// Files holds rules.yaml, events.ndjson and functions/redact.wasm. The module is made from
// functions/redact by the command in its README.
//
//go:embed rules.yaml events.ndjson functions/redact.wasm
var Files embed.FS
