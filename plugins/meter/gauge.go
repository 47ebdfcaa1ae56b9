package meter

import "github.com/tetratelabs/wazero/api"

// A Gauge reads and sets the fuel of one instance. It is used by whoever calls the guest, between calls and
// from host functions, never at the same time as guest code.
type Gauge struct {
	fuel, grant api.MutableGlobal
}

// GaugeOf returns the gauge of an instance of a module that Instrument made; ok is whether it is one.
func GaugeOf(m api.Module) (g Gauge, ok bool) {
	fuel, okF := m.ExportedGlobal(GlobalFuel).(api.MutableGlobal)
	grant, okG := m.ExportedGlobal(GlobalGrant).(api.MutableGlobal)
	return Gauge{fuel, grant}, okF && okG
}

// Spent is the fuel charged since the last Grant or, if it was later, since the last tick began. It is exact
// at any time: after a call returned, trapped or was ended by a panic in a host function, tick included.
func (g Gauge) Spent() int64 { return int64(g.grant.Get()) - int64(g.fuel.Get()) }

// Left is what remains of the grant; it may be below zero.
func (g Gauge) Left() int64 { return int64(g.fuel.Get()) }

// Grant gives the guest n units of fuel in place of what it has left and sets Spent to 0: call it before
// each call, and the first slice needs no tick. With 0, the next charge is followed by a tick.
func (g Gauge) Grant(n int64) {
	g.grant.Set(uint64(n))
	g.fuel.Set(uint64(n))
}
