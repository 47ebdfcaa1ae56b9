// A guest that tells its version: each event becomes {"by":{"version":"<VERSION>"},"in":<its data>}.
//   -DVERSION='"a"'  what it says        -DSPACE='" "'  after its colons
//   -DBROKEN=1       traps at start      -DTRAP=1       traps at every event
//   -DSTART=1        logs "starting" at start   -DSPIN=1  never answers
// An event whose data is a string is logged first.
#include <stdint.h>
#include <string.h>

#define EXPORT(name) __attribute__((export_name(name)))
#ifndef SPACE
#define SPACE ""
#endif

__attribute__((import_module("millrace_v1"), import_name("log"))) void say(int level, const char *p, uint32_t n);

static _Alignas(8) uint8_t in[2 << 20], out[4 << 20];
static uint32_t len;

EXPORT("millrace_abi_v1") uint32_t abi(void) { return 0; }
EXPORT("millrace_buffer") uint8_t *buffer(uint32_t n) { return n > sizeof in ? 0 : in; }

#if BROKEN
__attribute__((constructor)) static void broken(void) { __builtin_trap(); }
#endif

#if START
__attribute__((constructor)) static void start(void) { say(1, "starting", 8); }
#endif

static void emit(uint32_t index, const char *data, uint32_t n) {
	static const char head[] = "{\"by\":" SPACE "{\"version\":" SPACE "\"" VERSION "\"},\"in\":" SPACE;
	uint8_t *r = out + len;
	uint32_t off = 24, total = sizeof head - 1 + n + 1, size = (off + total + 7) & ~7u;
	memset(r, 0, size);
	memcpy(r, &size, 4);
	r[4] = 1;
	r[5] = 1;
	memcpy(r + 8, &index, 4);
	memcpy(r + 16, &off, 4);
	memcpy(r + 20, &total, 4);
	memcpy(r + off, head, sizeof head - 1);
	memcpy(r + off + sizeof head - 1, data, n);
	r[off + total - 1] = '}';
	len += size;
}

EXPORT("millrace_handle") uint64_t handle(uint8_t *ptr, uint32_t n) {
	uint32_t count, *cursor = (uint32_t *)(ptr + 12);
	uint8_t *at = ptr + 24;
	memcpy(&count, ptr + 4, 4);
	len = 0;
	for (uint32_t i = 0; i < count; i++) {
		uint32_t size, off, dlen;
		memcpy(&size, at, 4);
		memcpy(&off, at + 32, 4);
		memcpy(&dlen, at + 36, 4);
		*cursor = i;
#if TRAP
		__builtin_trap();
#endif
#if SPIN
		for (volatile int j = 0;; j++) {}
#endif
		if (dlen && at[off] == '"') say(1, (char *)at + off, dlen);
		emit(i, (char *)at + off, dlen);
		at += size;
	}
	*cursor = count;
	return (uint64_t)(uintptr_t)out << 32 | len;
}
