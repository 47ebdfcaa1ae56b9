// Package meter rewrites a core WASM module so that it counts what it executes and gives control back to
// the host after every slice of that count.
//
// A guest compiled by wazero runs as native code that Go can neither preempt nor time: one that loops stops
// the whole process at the next stop-the-world. A rewritten guest calls the host's tick after about a slice
// of work; there the collector can run, a deadline is seen, and the call is refuelled or ended.
//
// # What is counted
//
// Fuel. Every instruction has a fixed weight (most 1; constants, local.get and block structure 0; see
// weight), bulk operations and growth add one for every few bytes or elements. The function's entry and
// each loop's head charge ahead for the costliest way through what follows them, so that a call's fuel is
// never less than the sum of the weights that it executed. Fuel depends on the module and what it is given
// alone: neither time, nor slices, nor where ticks fall change it.
//
// # What the host sees
//
// The module imports TickModule.TickName (spent i64) -> (grant i64) and exports two mutable i64 globals:
// GlobalFuel, what is left of the current grant (it may be below zero), and GlobalGrant, that grant. Both
// begin at 0, so the first thing a guest does, in its start function too, is to ask for a grant. Whenever
// a charge makes fuel negative, the guest calls tick with what it spent since the last one; both globals
// are zero during that call and set to its result afterwards. At any time, after a return, a trap or a
// panic in a host function, GlobalGrant − GlobalFuel is exactly what was charged since the last tick.
package meter

import (
	"fmt"

	"github.com/millrace/millrace/engine/event"
)

// Version changes whenever the same module is rewritten to other bytes: compiled modules are cached by it.
const Version = 2

// Names that the rewritten module imports and exports. A module that has any of them already is refused.
const (
	TickModule  = "millrace:meter"
	TickName    = "tick"
	GlobalFuel  = "millrace:fuel"
	GlobalGrant = "millrace:grant"

	reserved = "millrace:"
)

// Slice is the fuel to grant at each tick: 20 to 100 µs of native code on a current machine.
const Slice = 50_000

// Options bounds what is accepted. Zero values are the defaults of limits.
type Options struct {
	Limits Limits
}

// Instrument returns module with metering built in. It knows every section and opcode of WebAssembly 2.0 as wazero
// runs it (api.CoreFeaturesV2). What it does not know, or what is beyond the limits, is an
// event.ErrInvalid that names the place and the value. It does not validate types: compile the result, and
// what was invalid before is invalid after. It never changes module.
func Instrument(module []byte, o Options) ([]byte, error) {
	return instrument(module, o, maxAhead, maxFree)
}

// instrument is Instrument with what it charges ahead at most, and up to which cost a function leaves
// charging to its callers. With 0 and -1 every instruction is charged when it is executed.
func instrument(module []byte, o Options, ahead, free int64) ([]byte, error) {
	m := &rewriter{in: module, limits: o.Limits.withDefaults(), ahead: ahead, free: free}
	if err := m.run(); err != nil {
		return nil, event.Bad(event.ErrInvalid, "module", err.Error())
	}
	return m.out, nil
}

// A rewriter holds one module on its way through: sections are read into it, then written from it.
type rewriter struct {
	in, out []byte
	limits  Limits
	ahead   int64
	free    int64

	sections []section
	types    []funcType
	funcs    []uint32 // type of each function, imported ones first
	imported uint32   // imported functions: theirs is the index that tick takes, all later ones move up by one
	tables   []byte   // element type of each table, imported ones first
	globals  uint32
	bodies   []body
	taken    map[uint32]bool // functions in tables, referred to, exported, or the start
	callCost []int64         // what a call of each function costs its caller for what it does not charge itself

	newTypes [][]byte // appended to the type section, encoded
	helpers  []helper
	helperAt map[helperKey]uint32

	locals uint64 // of all functions
}

// A section is one of the module as it came; custom ones have id 0.
type section struct {
	id   byte
	body span // without id and size
}

type span struct{ from, to int }

type funcType struct {
	params, results []byte
}

func (m *rewriter) run() error {
	if err := m.read(); err != nil {
		return err
	}
	return m.write()
}

// fuel and grant are the indices of the globals that are appended.
func (m *rewriter) fuel() uint32  { return m.globals }
func (m *rewriter) grant() uint32 { return m.globals + 1 }

// tick is the index of the imported function.
func (m *rewriter) tick() uint32 { return m.imported }

// moved is the index of function i in the rewritten module.
func (m *rewriter) moved(i uint32) uint32 {
	if i >= m.imported {
		return i + 1
	}
	return i
}

func (m *rewriter) typeOf(fn uint32) (funcType, error) {
	if int(fn) >= len(m.funcs) || int(m.funcs[fn]) >= len(m.types) {
		return funcType{}, fmt.Errorf("function %d does not exist or has no type", fn)
	}
	return m.types[m.funcs[fn]], nil
}
