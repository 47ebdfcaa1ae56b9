//go:build wasip1

package millrace

import "unsafe"

//go:wasmimport millrace_v1 log
func importLog(level int32, ptr unsafe.Pointer, n uint32)

//go:wasmimport millrace_v1 config_get
func importConfig(k unsafe.Pointer, klen uint32, buf unsafe.Pointer, room uint32) int64

//go:wasmimport millrace_v1 now
func importNow() int64

//go:wasmimport millrace_v1 clock
func importClock() int64

//go:wasmimport millrace_v1 random
func importRandom(ptr unsafe.Pointer, n uint32)

//go:wasmimport millrace_v1 counter_add
func importCount(name unsafe.Pointer, n uint32, delta int64)

func hostCount(name string, delta int64) {
	importCount(unsafe.Pointer(unsafe.StringData(name)), uint32(len(name)), delta)
}

func hostLog(level Level, s string) {
	importLog(int32(level), unsafe.Pointer(unsafe.StringData(s)), uint32(len(s)))
}

func hostConfig(key string, buf []byte) int64 {
	return importConfig(unsafe.Pointer(unsafe.StringData(key)), uint32(len(key)), unsafe.Pointer(unsafe.SliceData(buf)), uint32(len(buf)))
}

func hostNow() int64   { return importNow() }
func hostClock() int64 { return importClock() }

func hostRandom(p []byte) { importRandom(unsafe.Pointer(unsafe.SliceData(p)), uint32(len(p))) }

// The batch lies in a slice of words, for the alignment that its records have.
var (
	in  []uint64
	out Results
)

//go:wasmexport millrace_abi_v1
func abi() uint32 { return uint32(required) }

//go:wasmexport millrace_buffer
func buffer(n uint32) unsafe.Pointer {
	if words := (int(n) + 7) / 8; words > len(in) {
		in = make([]uint64, words+words/4)
	}
	return unsafe.Pointer(unsafe.SliceData(in))
}

//go:wasmexport millrace_handle
func handle(ptr unsafe.Pointer, n uint32) uint64 {
	if handler == nil {
		hostLog(Error, "no handler: call millrace.Handle from an init function")
		return 0
	}
	out.run(unsafe.Slice((*byte)(ptr), n), handler)
	return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(out.buf))))<<32 | uint64(len(out.buf))
}

// word is the eight bytes from at on: here they are one instruction, which le.Uint64 is not.
func word(doc []byte, at int) uint64 {
	return *(*uint64)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(doc)), at))
}
