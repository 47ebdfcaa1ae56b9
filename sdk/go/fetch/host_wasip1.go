//go:build wasip1

package fetch

import "unsafe"

//go:wasmimport millrace_v1 http
func importHTTP(req unsafe.Pointer, n uint32, buf unsafe.Pointer, room uint32) int64

func request(req, buf []byte) int64 {
	return importHTTP(unsafe.Pointer(unsafe.SliceData(req)), uint32(len(req)), unsafe.Pointer(unsafe.SliceData(buf)), uint32(len(buf)))
}
