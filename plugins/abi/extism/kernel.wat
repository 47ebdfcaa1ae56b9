;; What a plug-in of Extism reaches through its imports: blocks of memory outside its own. This module is
;; instantiated once beside every plug-in, since a call from one module into another costs a few nanoseconds, one
;; into the host ten times that, and plug-ins move their data 8 bytes a call.
;;
;; A block has a header of 16 bytes: its offset, multiplied, as a mark of being one, and its length. Blocks are laid
;; one behind another and go all at once when the next event begins; free gives back the last one only.
;;
;; The host trusts nothing that it finds here. Build: wat2wasm kernel.wat -o kernel.wasm
(module
  (import "millrace:extism" "full" (func $full))
  (import "millrace:extism" "config_get" (func $config_get (param i64) (result i64)))
  (import "millrace:extism" "var_get" (func $var_get (param i64) (result i64)))
  (import "millrace:extism" "var_set" (func $var_set (param i64 i64)))
  (import "millrace:extism" "http_request" (func $http_request (param i64 i64) (result i64)))
  (import "millrace:extism" "http_status_code" (func $http_status_code (result i32)))
  (import "millrace:extism" "http_headers" (func $http_headers (result i64)))
  (import "millrace:extism" "log" (func $log (param i32 i64)))

  (memory (export "memory") 1 512) ;; 32 MiB

  (global $top (mut i64) (i64.const 16))    ;; where the next header goes
  (global $floor (mut i64) (i64.const 0))   ;; free gives nothing back below: it is output
  (global $in (mut i64) (i64.const 0))
  (global $in_len (mut i64) (i64.const 0))
  (global $out (mut i64) (i64.const 0))
  (global $out_len (mut i64) (i64.const 0))
  (global $err (mut i64) (i64.const 0))
  (global $has_out (mut i32) (i32.const 0))

  (func $mark (param $o i64) (result i64)
    (i64.mul (i64.add (local.get $o) (i64.const 1)) (i64.const 0x9E3779B97F4A7C15)))

  ;; at is an offset as an address of this memory; what lies beyond it traps.
  (func $at (param $o i64) (result i32)
    (if (i64.ge_u (local.get $o) (i64.const 0x100000000)) (then unreachable))
    (i32.wrap_i64 (local.get $o)))

  (func $end (param $o i64) (param $n i64) (result i64)
    (i64.and (i64.add (i64.add (local.get $o) (local.get $n)) (i64.const 15)) (i64.const -16)))

  (func $alloc (export "alloc") (param $n i64) (result i64)
    (local $o i64) (local $need i64)
    (if (i64.eqz (local.get $n)) (then (return (i64.const 0))))
    (if (i64.ge_u (local.get $n) (i64.const 0x40000000)) (then (call $full) unreachable))
    (local.set $o (i64.add (global.get $top) (i64.const 16)))
    (local.set $need (i64.sub (i64.shr_u (i64.add (call $end (local.get $o) (local.get $n)) (i64.const 65535)) (i64.const 16))
                              (i64.extend_i32_u (memory.size))))
    (if (i64.gt_s (local.get $need) (i64.const 0))
      (then (if (i32.lt_s (memory.grow (i32.wrap_i64 (local.get $need))) (i32.const 0)) (then (call $full) unreachable))))
    (i64.store (call $at (global.get $top)) (call $mark (local.get $o)))
    (i64.store offset=8 (call $at (global.get $top)) (local.get $n))
    (global.set $top (call $end (local.get $o) (local.get $n)))
    (local.get $o))

  (func $length (export "length") (param $o i64) (result i64)
    (if (i64.lt_u (local.get $o) (i64.const 32)) (then (return (i64.const 0))))
    (if (i64.gt_u (local.get $o) (global.get $top)) (then (return (i64.const 0))))
    (if (i64.ne (i64.load (call $at (i64.sub (local.get $o) (i64.const 16)))) (call $mark (local.get $o))) (then (return (i64.const 0))))
    (i64.load (call $at (i64.sub (local.get $o) (i64.const 8)))))

  (func (export "length_unsafe") (param $o i64) (result i64) (call $length (local.get $o)))

  (func (export "free") (param $o i64)
    (local $n i64)
    (local.set $n (call $length (local.get $o)))
    (if (i64.eqz (local.get $n)) (then (return)))
    (if (i64.lt_u (local.get $o) (global.get $floor)) (then (return)))
    (i64.store (call $at (i64.sub (local.get $o) (i64.const 16))) (i64.const 0))
    (if (i64.eq (call $end (local.get $o) (local.get $n)) (global.get $top))
      (then (global.set $top (i64.sub (local.get $o) (i64.const 16))))))

  (func (export "load_u8") (param $o i64) (result i32) (i32.load8_u (call $at (local.get $o))))
  (func (export "load_u64") (param $o i64) (result i64) (i64.load (call $at (local.get $o))))
  (func (export "store_u8") (param $o i64) (param $v i32) (i32.store8 (call $at (local.get $o)) (local.get $v)))
  (func (export "store_u64") (param $o i64) (param $v i64) (i64.store (call $at (local.get $o)) (local.get $v)))

  (func (export "input_set") (param $o i64) (param $n i64)
    (global.set $in (local.get $o))
    (global.set $in_len (local.get $n)))
  (func (export "input_length") (result i64) (global.get $in_len))
  (func (export "input_offset") (result i64) (global.get $in))
  (func (export "input_load_u8") (param $i i64) (result i32)
    (if (i64.ge_u (local.get $i) (global.get $in_len)) (then unreachable))
    (i32.load8_u (call $at (i64.add (global.get $in) (local.get $i)))))
  (func (export "input_load_u64") (param $i i64) (result i64)
    (if (i64.ge_u (local.get $i) (global.get $in_len)) (then unreachable))
    (i64.load (call $at (i64.add (global.get $in) (local.get $i)))))

  ;; keep moves the floor above what the host will read when the call has ended.
  (func $keep (param $end i64)
    (if (i64.gt_u (local.get $end) (global.get $floor)) (then (global.set $floor (local.get $end)))))

  (func (export "output_set") (param $o i64) (param $n i64)
    (global.set $out (local.get $o))
    (global.set $out_len (local.get $n))
    (global.set $has_out (i32.const 1))
    (call $keep (i64.add (local.get $o) (local.get $n))))
  (func (export "output_length") (result i64) (global.get $out_len))
  (func (export "output_offset") (result i64) (global.get $out))
  (func (export "error_set") (param $o i64)
    (global.set $err (local.get $o))
    (call $keep (i64.add (local.get $o) (call $length (local.get $o)))))
  (func (export "error_get") (result i64) (global.get $err))
  (func $reset (export "reset")
    (global.set $top (i64.const 16))
    (global.set $floor (i64.const 0))
    (global.set $in (i64.const 0))
    (global.set $in_len (i64.const 0))
    (global.set $out (i64.const 0))
    (global.set $out_len (i64.const 0))
    (global.set $err (i64.const 0))
    (global.set $has_out (i32.const 0)))
  (func (export "memory_bytes") (result i64) (i64.shl (i64.extend_i32_u (memory.size)) (i64.const 16)))

  (func (export "config_get") (param i64) (result i64) (call $config_get (local.get 0)))
  (func (export "var_get") (param i64) (result i64) (call $var_get (local.get 0)))
  (func (export "var_set") (param i64 i64) (call $var_set (local.get 0) (local.get 1)))
  (func (export "http_request") (param i64 i64) (result i64) (call $http_request (local.get 0) (local.get 1)))
  (func (export "http_status_code") (result i32) (call $http_status_code))
  (func (export "http_headers") (result i64) (call $http_headers))
  (func (export "get_log_level") (result i32) (i32.const 1)) ;; debug: the host decides what it keeps
  (func (export "log_trace") (param i64) (call $log (i32.const 0) (local.get 0)))
  (func (export "log_debug") (param i64) (call $log (i32.const 0) (local.get 0)))
  (func (export "log_info") (param i64) (call $log (i32.const 1) (local.get 0)))
  (func (export "log_warn") (param i64) (call $log (i32.const 2) (local.get 0)))
  (func (export "log_error") (param i64) (call $log (i32.const 3) (local.get 0)))

  ;; The host's own: begin forgets the last event and makes room for the next one's input; result says what a
  ;; call left: its output, whether there is one, and its error.
  (func (export "millrace:begin") (param $n i64) (result i64)
    (call $reset)
    (global.set $in (call $alloc (local.get $n)))
    (global.set $in_len (local.get $n))
    (call $keep (i64.add (global.get $in) (local.get $n)))
    (global.get $in))
  (func (export "millrace:result") (result i64 i64 i32 i64 i64)
    (global.get $out) (global.get $out_len) (global.get $has_out) (global.get $err) (call $length (global.get $err))))
