;; A guest whose start function asks the host to read its memory.
(module
  (import "millrace_v1" "log" (func $log (param i32 i32 i32)))
  (memory (export "memory") 1)
  (func $start (call $log (i32.const 1) (i32.const 0) (i32.const 5)))
  (start $start)
  (func (export "millrace_abi_v1") (result i32) (i32.const 0))
  (func (export "millrace_buffer") (param i32) (result i32) (i32.const 8))
  (func (export "millrace_handle") (param i32 i32) (result i64) (i64.const 0)))
