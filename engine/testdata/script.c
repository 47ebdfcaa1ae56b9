// A guest that does what the data of an event says, statement by statement:
//   e<data>;     EMIT without an id          i<id>=<data>;  EMIT with an id
//   o<topic>;    EMIT to a topic, data "out" p;             PASS
//   d;           DROP                        r<ms>;         RETRY after ms
//   1<ms>;       RETRY on the first attempt only, PASS afterwards
//   x<code>;     REJECT                      t              trap
//   a<status>=<body>;  REPLY, text/plain     h<status>;     REPLY whose content type has a line break
//   b<bytes>;    REPLY 200 of so many bytes  w;             REPLY if one is wanted, else DROP
//   s               run without end
// Of the EMITs the data is a script for the next function.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT(name) __attribute__((export_name(name)))

static _Alignas(8) uint8_t in[2 << 20], out[4 << 20];
static uint32_t len;

EXPORT("millrace_abi_v1") uint32_t abi(void) { return 0; }
EXPORT("millrace_buffer") uint8_t *buffer(uint32_t n) { return n > sizeof in ? 0 : in; }

static void put(uint32_t index, int kind, uint32_t arg, int tag, const char *v, uint32_t vlen, const char *data, uint32_t n) {
	uint8_t *r = out + len;
	uint32_t alen = tag ? (8 + vlen + 3) & ~3u : 0, off = 24 + alen, size = (off + n + 7) & ~7u;
	uint16_t count = tag ? 1 : 0;
	memset(r, 0, size);
	memcpy(r, &size, 4);
	r[4] = kind;
	r[5] = kind == 1;
	memcpy(r + 6, &count, 2);
	memcpy(r + 8, &index, 4);
	memcpy(r + 12, &arg, 4);
	if (n) memcpy(r + 16, &off, 4);
	memcpy(r + 20, &n, 4);
	if (tag) {
		r[24] = tag;
		memcpy(r + 28, &vlen, 4);
		memcpy(r + 32, v, vlen);
	}
	memcpy(r + off, data, n);
	len += size;
}

static uint32_t number(const char *s, const char *end) {
	uint32_t n = 0;
	while (s < end && *s >= '0' && *s <= '9') n = n * 10 + *s++ - '0';
	return n;
}

static void run(uint32_t i, uint32_t attempt, uint16_t flags, const char *s, const char *end) {
	int said = 0;
	while (s < end) {
		const char *stop = memchr(s, ';', end - s), *eq;
		if (!stop) stop = end;
		const char *a = s + 1;
		said = 1;
		switch (*s) {
		case 'e': put(i, 1, 0, 0, 0, 0, a, stop - a); break;
		case 'i':
			eq = memchr(a, '=', stop - a);
			put(i, 1, 0, 1, a, eq - a, eq + 1, stop - eq - 1);
			break;
		case 'o': put(i, 1, 0, 7, a, stop - a, "out", 3); break;
		case 'd': put(i, 2, 0, 0, 0, 0, 0, 0); break;
		case 'r': put(i, 3, number(a, stop), 0, 0, 0, 0, 0); break;
		case '1':
			if (attempt == 1) put(i, 3, number(a, stop), 0, 0, 0, 0, 0);
			else put(i, 0, 0, 0, 0, 0, 0, 0);
			break;
		case 'x': put(i, 4, number(a, stop), 0, 0, 0, "refused here", 12); break;
		case 'a':
			eq = memchr(a, '=', stop - a);
			put(i, 5, number(a, eq), 5, "text/plain", 10, eq + 1, stop - eq - 1);
			break;
		case 'w':
			if (flags & 1) put(i, 5, 200, 5, "text/plain", 10, "wanted", 6);
			else put(i, 2, 0, 0, 0, 0, 0, 0);
			break;
		case 'h': put(i, 5, number(a, stop), 5, "text/html\r\nx-evil: 1", 20, "", 0); break;
		case 'b': put(i, 5, 200, 5, "text/plain", 10, (char *)out + (2 << 20), number(a, stop)); break;
		case 's': for (volatile int turns = 0;; turns++) {}
		case 't': __builtin_trap();
		default: put(i, 0, 0, 0, 0, 0, 0, 0);
		}
		s = stop + 1;
	}
	if (!said) put(i, 0, 0, 0, 0, 0, 0, 0);
}

EXPORT("millrace_handle") uint64_t handle(uint8_t *ptr, uint32_t n) {
	uint32_t count, *cursor = (uint32_t *)(ptr + 12);
	uint8_t *at = ptr + 24;
	memcpy(&count, ptr + 4, 4);
	len = 0;
	for (uint32_t i = 0; i < count; i++) {
		uint32_t size, off, dlen, attempt;
		uint16_t flags;
		memcpy(&size, at, 4);
		memcpy(&flags, at + 6, 2);
		memcpy(&attempt, at + 24, 4);
		memcpy(&off, at + 32, 4);
		memcpy(&dlen, at + 36, 4);
		*cursor = i;
		run(i, attempt, flags, (char *)at + off, (char *)at + off + dlen);
		at += size;
	}
	*cursor = count;
	return (uint64_t)(uintptr_t)out << 32 | len;
}
