package plugins

import (
	"context"
	"fmt"
	"time"

	"github.com/millrace/millrace/engine/event"
)

// A Description is what a module says of itself, for people who look at it before they upload it.
type Description struct {
	Script  string // the language of a script, of which the rest describes the engine; "" of a module
	ABI     ABI    // who speaks its language; nil if nobody does or the module is refused
	Digest  string
	Bytes   int
	Imports []Extern
	Exports []Extern
	Memory  *Bounds // in pages of 64 KiB; nil without one
	Tables  []Bounds
	Funcs   int // imported ones included

	Compile     time.Duration // it took
	Instantiate time.Duration // it took, initialisation included
	Used        int64         // bytes of linear memory of an instance before its first event
}

// Bounds are how large a memory or table is to begin with and may become.
type Bounds struct {
	Min, Max uint32
	Bounded  bool // Max is given
}

// Describe reads a module, compiles it and makes one instance of it, as Put and Open do with def, and
// throws it away. An error is why the router would refuse it; the description then holds what could be read.
func (h *Host) Describe(ctx context.Context, file []byte, def event.Function) (Description, error) {
	d := Description{Digest: digestOf(file), Bytes: len(file)}
	d.Script, _, _ = ScriptOf(file)
	if len(file) > len(preamble) && string(file[:len(preamble)]) == string(preamble) {
		if m, err := parse(file); err == nil {
			d.fill(m)
		}
	}
	m, abi, err := h.inspect(file)
	if err != nil {
		return d, err
	}
	d.ABI = abi
	d.fill(m)
	start := time.Now()
	def.Digest, err = h.Put(ctx, file)
	if err != nil {
		return d, err
	}
	d.Compile = time.Since(start)
	start = time.Now()
	f, err := h.Open(ctx, def)
	if err != nil {
		return d, err
	}
	d.Instantiate = time.Since(start)
	d.Used = f.Stats().Memory
	if err := f.Close(ctx); err != nil {
		return d, fmt.Errorf("describe: %w", err)
	}
	return d, nil
}

func (d *Description) fill(m *Module) {
	d.Imports, d.Exports, d.Funcs = m.Imports, m.Exports, len(m.funcTypes)
	d.Memory, d.Tables = nil, nil
	if len(m.memories) > 0 {
		d.Memory = &Bounds{m.memories[0].min, m.memories[0].max, m.memories[0].bounded}
	}
	for _, t := range m.tables {
		d.Tables = append(d.Tables, Bounds{t.min, t.max, t.bounded})
	}
}
