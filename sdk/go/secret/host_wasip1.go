//go:build wasip1

package secret

import "unsafe"

//go:wasmimport millrace_v1 secret_get
func importGet(k unsafe.Pointer, klen uint32, buf unsafe.Pointer, room uint32) int64

func get(name string, buf []byte) int64 {
	return importGet(unsafe.Pointer(unsafe.StringData(name)), uint32(len(name)), unsafe.Pointer(unsafe.SliceData(buf)), uint32(len(buf)))
}
