// A plug-in that declares what it imports by hand, and does by the first byte of its input what no plug-in should.
#include <stdint.h>

#define IMPORT(name) __attribute__((import_module("extism:host/env"), import_name(#name)))
IMPORT(alloc) uint64_t ext_alloc(uint64_t);
IMPORT(free) void ext_free(uint64_t);
IMPORT(length) uint64_t ext_length(uint64_t);
IMPORT(length_unsafe) uint64_t ext_length_unsafe(uint64_t);
IMPORT(load_u8) uint32_t ext_load_u8(uint64_t);
IMPORT(load_u64) uint64_t ext_load_u64(uint64_t);
IMPORT(store_u8) void ext_store_u8(uint64_t, uint32_t);
IMPORT(store_u64) void ext_store_u64(uint64_t, uint64_t);
IMPORT(input_length) uint64_t input_length(void);
IMPORT(input_offset) uint64_t input_offset(void);
IMPORT(input_load_u8) uint32_t input_load_u8(uint64_t);
IMPORT(input_load_u64) uint64_t input_load_u64(uint64_t);
IMPORT(output_set) void output_set(uint64_t, uint64_t);
IMPORT(error_set) void error_set(uint64_t);
IMPORT(config_get) uint64_t config_get(uint64_t);
IMPORT(var_get) uint64_t var_get(uint64_t);
IMPORT(var_set) void var_set(uint64_t, uint64_t);
IMPORT(http_request) uint64_t http_request(uint64_t, uint64_t);
IMPORT(http_status_code) int32_t http_status_code(void);
IMPORT(http_headers) uint64_t http_headers(void);
IMPORT(get_log_level) int32_t get_log_level(void);
IMPORT(log_info) void log_info(uint64_t);

static uint64_t text(const char *s) {
	uint64_t n = 0;
	while (s[n]) n++;
	uint64_t o = ext_alloc(n);
	for (uint64_t i = 0; i < n; i++) ext_store_u8(o + i, (uint8_t)s[i]);
	return o;
}

static void say(uint64_t block) { output_set(block, ext_length(block)); }

__attribute__((export_name("handle"))) int32_t handle(void) {
	uint64_t n = input_length(), o = 0;
	if (n == 0) {
		output_set(0, 0);
		return 0;
	}
	switch (input_load_u8(0)) {
	case 't': __builtin_trap();
	case 'e': // an error with words
		error_set(text("no such thing"));
		return 7;
	case 'E': // one without
		return 3;
	case 'm': return 0; // mute
	case 'o': output_set(0xFFFFFFFFFFFFFFF0, 64); return 0;
	case 'O': output_set(16, 0x7FFFFFFF); return 0;
	case 'l': return (int32_t)ext_load_u64(0xFFFFFFFFFFFFFFF8);
	case 'L': return (int32_t)ext_load_u64(1 << 30);
	case 's': ext_store_u64(0x1000000000, 1); return 0;
	case 'i': return (int32_t)input_load_u64(n);
	case 'I': return (int32_t)input_load_u8(UINT64_MAX);
	case 'a': for (;;) ext_alloc(1 << 20);
	case 'A': ext_alloc(UINT64_MAX); return 0;
	case 'z': for (;;) {}
	case 'Z': for (uint64_t big = ext_alloc(30 << 20);;) config_get(big); // the host looks through it each time
	case 'f': // what is freed is no block, and its room serves again
		o = text("gone");
		ext_free(o);
		if (ext_length(o) != 0 || ext_length(o + 8) != 0 || ext_length(0) != 0 || ext_length(UINT64_MAX) != 0) return 1;
		if (text("here") != o) return 2;
		ext_free(o + 1);
		if (ext_length_unsafe(o) != 4) return 3;
		say(o);
		ext_free(o); // the output stays
		text("more");
		output_set(o, 4);
		return 0;
	case 'F': for (int i = 0; i < 1 << 16; i++) ext_free(ext_alloc(1 << 10)); say(text("ok")); return 0;
	case 'v': // counts the calls of this instance
		o = var_get(text("n"));
		var_set(text("n"), text(o == 0 ? "once" : "again"));
		say(o == 0 ? text("none") : o);
		return 0;
	case 'x': var_set(text("n"), 0); say(text("removed")); return 0;
	case 'V': for (char k[] = "aa";; k[0]++) var_set(text(k), ext_alloc(100000));
	case 'c': say(config_get(text("greeting"))); return 0;
	case 'C': output_set(config_get(text("absent")), 0); return 0;
	case 'g': log_info(text("it is logged")); say(text(get_log_level() == 1 ? "debug" : "?")); return 0;
	case 'h':
		o = http_request(text("{\"method\":\"post\",\"url\":\"https://api.example.com/x\",\"headers\":{\"A\":\"b\"}}"), text("body"));
		if (http_status_code() != 201) return 1;
		if (ext_length(http_headers()) != sizeof "{\"x-b\":\"c\"}" - 1) return 2;
		say(o);
		return 0;
	case 'H': http_request(text("{\"url\":\"https://other.example.com/\"}"), 0); return 0;
	case 'j': http_request(text("no json"), 0); return 0;
	}
	o = ext_alloc(n); // gives back what it got, 8 bytes a call as the kits do
	uint64_t i = 0;
	for (; i + 8 <= n; i += 8) ext_store_u64(o + i, input_load_u64(i));
	for (; i < n; i++) ext_store_u8(o + i, (uint8_t)ext_load_u8(input_offset() + i));
	say(o);
	return 0;
}

#ifdef TWO
__attribute__((export_name("second"))) void second(void) { say(text("second")); }
__attribute__((export_name("with_parameter"))) int32_t with_parameter(int32_t x) { return x; }
#endif
