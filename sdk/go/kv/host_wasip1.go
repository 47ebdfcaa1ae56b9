//go:build wasip1

package kv

import "unsafe"

//go:wasmimport millrace_v1 kv_get
func importGet(k unsafe.Pointer, klen uint32, buf unsafe.Pointer, room uint32) int64

//go:wasmimport millrace_v1 kv_put
func importPut(k unsafe.Pointer, klen uint32, v unsafe.Pointer, vlen uint32, ttl int64) int32

//go:wasmimport millrace_v1 kv_del
func importDel(k unsafe.Pointer, klen uint32) int32

//go:wasmimport millrace_v1 kv_add
func importAdd(k unsafe.Pointer, klen uint32, delta int64, sum unsafe.Pointer) int32

func get(key string, buf []byte) int64 {
	return importGet(unsafe.Pointer(unsafe.StringData(key)), uint32(len(key)), unsafe.Pointer(unsafe.SliceData(buf)), uint32(len(buf)))
}

func put(key string, value []byte, ttl int64) int32 {
	return importPut(unsafe.Pointer(unsafe.StringData(key)), uint32(len(key)), unsafe.Pointer(unsafe.SliceData(value)), uint32(len(value)), ttl)
}

func del(key string) int32 {
	return importDel(unsafe.Pointer(unsafe.StringData(key)), uint32(len(key)))
}

func add(key string, delta int64, sum *int64) int32 {
	return importAdd(unsafe.Pointer(unsafe.StringData(key)), uint32(len(key)), delta, unsafe.Pointer(sum))
}
