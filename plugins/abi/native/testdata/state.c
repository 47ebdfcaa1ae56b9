// A guest that does with its state what the data of an event says, statement by statement:
//   g<key>;  kv_get        s<key>;  kv_get with no room       d<key>;  kv_del
//   p<key>=<value>;  kv_put, for ever     p<key>=<value>,<ms>;  kv_put for so long
//   a<key>=<delta>;  kv_add               o<key>;  kv_add with out outside the memory
//   V<n>;  kv_put of n bytes              K<n>;  kv_put of a key of n bytes
//   t;  trap    x;  REJECT    r;  RETRY   1;  RETRY on the first attempt only
//   f<topic>;  EMIT to that topic
// and ends with an EMIT of what was answered: a value or a number, or ! and the code.
// With -DNEEDS=1 its marker asks for state.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef NEEDS
#define NEEDS 0
#endif
#define EXPORT(name) __attribute__((export_name(name)))
#define IMPORT(name) __attribute__((import_module("millrace_v1"), import_name(name)))

IMPORT("kv_get") int64_t kv_get(const char *k, uint32_t klen, char *buf, uint32_t cap);
IMPORT("kv_put") int32_t kv_put(const char *k, uint32_t klen, const char *v, uint32_t vlen, int64_t ttl);
IMPORT("kv_del") int32_t kv_del(const char *k, uint32_t klen);
IMPORT("kv_add") int32_t kv_add(const char *k, uint32_t klen, int64_t delta, int64_t *out);

static _Alignas(8) uint8_t in[2 << 20], out[4 << 20];
static char text[1 << 20], value[128 << 10];
static uint32_t len, said;

EXPORT("millrace_abi_v1") uint32_t abi(void) { return NEEDS; }
EXPORT("millrace_buffer") uint8_t *buffer(uint32_t n) { return n > sizeof in ? 0 : in; }

static void put(uint32_t index, int kind, uint32_t arg, const char *topic, uint32_t tlen, const char *data, uint32_t n) {
	uint8_t *r = out + len;
	uint32_t alen = topic ? (8 + tlen + 3) & ~3u : 0, off = 24 + alen, size = (off + n + 7) & ~7u;
	uint16_t count = topic ? 1 : 0;
	memset(r, 0, size);
	memcpy(r, &size, 4);
	r[4] = kind;
	r[5] = kind == 1;
	memcpy(r + 6, &count, 2);
	memcpy(r + 8, &index, 4);
	memcpy(r + 12, &arg, 4);
	if (n) memcpy(r + 16, &off, 4);
	memcpy(r + 20, &n, 4);
	if (topic) {
		r[24] = 7;
		memcpy(r + 28, &tlen, 4);
		memcpy(r + 32, topic, tlen);
	}
	memcpy(r + off, data, n);
	len += size;
}

static int64_t number(const char *s, const char *end) {
	int64_t n = 0, sign = 1;
	if (s < end && *s == '-') sign = -1, s++;
	while (s < end && *s >= '0' && *s <= '9') n = n * 10 + sign * (*s++ - '0');
	return n;
}

static void say(const char *s, uint32_t n) {
	if (said) text[said++] = ' ';
	memcpy(text + said, s, n);
	said += n;
}

static void tell(int error, int64_t n) {
	char digits[24];
	int at = sizeof digits, negative = n < 0;
	do digits[--at] = '0' + (negative ? -(n % 10) : n % 10);
	while ((n /= 10) != 0);
	if (negative) digits[--at] = '-';
	if (error) digits[--at] = '!';
	say(digits + at, sizeof digits - at);
}

static void get(const char *k, uint32_t klen, uint32_t room) {
	int64_t n = kv_get(k, klen, value, room);
	if (n < 0) tell(1, n);
	else if (n > room) tell(0, n);
	else say(value, n);
}

static void run(uint32_t i, uint32_t attempt, const char *s, const char *end) {
	uint32_t start = len;
	said = 0;
	while (s < end) {
		const char *stop = memchr(s, ';', end - s), *a = s + 1, *eq, *comma;
		int64_t n = 0;
		int32_t code;
		if (!stop) stop = end;
		eq = memchr(a, '=', stop - a);
		switch (*s) {
		case 'g': get(a, stop - a, sizeof value); break;
		case 's': get(a, stop - a, 0); break;
		case 'd': code = kv_del(a, stop - a); tell(code != 0, code); break;
		case 'p':
			comma = memchr(eq, ',', stop - eq);
			if (comma) n = number(comma + 1, stop);
			else comma = stop;
			code = kv_put(a, eq - a, eq + 1, comma - eq - 1, n);
			tell(code != 0, code);
			break;
		case 'a':
			code = kv_add(a, eq - a, number(eq + 1, stop), &n);
			tell(code != 0, code ? code : n);
			break;
		case 'o': code = kv_add(a, stop - a, 1, (int64_t *)0xfffffff0); tell(code != 0, code); break;
		case 'V': code = kv_put("big", 3, value, number(a, stop), 0); tell(code != 0, code); break;
		case 'K': code = kv_put(value, number(a, stop), "", 0, 0); tell(code != 0, code); break;
		case 'f': put(i, 1, 0, a, stop - a, "out", 3); break;
		case 't': __builtin_trap();
		case 'x': len = start; put(i, 4, 7, 0, 0, "refused here", 12); return;
		case '1': if (attempt > 1) break; // fall through
		case 'r': len = start; put(i, 3, 1, 0, 0, 0, 0); return;
		}
		s = stop + 1;
	}
	put(i, 1, 0, 0, 0, text, said);
}

EXPORT("millrace_handle") uint64_t handle(uint8_t *ptr, uint32_t n) {
	uint32_t count, *cursor = (uint32_t *)(ptr + 12);
	uint8_t *at = ptr + 24;
	memcpy(&count, ptr + 4, 4);
	len = 0;
	for (uint32_t i = 0; i < count; i++) {
		uint32_t size, off, dlen, attempt;
		memcpy(&size, at, 4);
		memcpy(&attempt, at + 24, 4);
		memcpy(&off, at + 32, 4);
		memcpy(&dlen, at + 36, 4);
		*cursor = i;
		run(i, attempt, (char *)at + off, (char *)at + off + dlen);
		at += size;
	}
	*cursor = count;
	return (uint64_t)(uintptr_t)out << 32 | len;
}
