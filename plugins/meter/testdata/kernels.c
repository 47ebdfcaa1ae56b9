// Small kernels that the meter's cost is measured with: each is a loop or a recursion and little else.
//
// clang-19 --target=wasm32-unknown-unknown -nostdlib -O2 -mbulk-memory -Wl,--no-entry -o kernels.wasm kernels.c
#include <stdint.h>

#define EXPORT(name) __attribute__((export_name(name)))

static uint8_t buf[1 << 16];
static double a[32][32], b[32][32], c[32][32];

EXPORT("prepare") void prepare(void) {
	uint32_t x = 1;
	for (uint32_t i = 0; i < sizeof buf; i++) {
		x = x * 1664525 + 1013904223;
		buf[i] = x >> 24;
	}
	for (int i = 0; i < 32; i++)
		for (int j = 0; j < 32; j++) a[i][j] = b[i][j] = i + j;
}

// find is memchr for a byte that is not there.
EXPORT("find") uint32_t find(void) {
	uint32_t hits = 0;
	for (int round = 0; round < 4; round++) {
		const uint8_t *p = buf, *end = buf + 16384;
		while (p < end && (*p & 0x100) == 0 && *p != 255 - round % 1) p++;
		for (p = buf; p < end; p++) {
			if (*p == '"') hits++;
		}
	}
	return hits;
}

// scan is a JSON scanner's inner loop: a switch per byte.
EXPORT("scan") uint32_t scan(void) {
	uint32_t depth = 0, strings = 0;
	for (const uint8_t *p = buf, *end = buf + 32768; p < end; p++) {
		if (*p == '"') {
			strings++;
			for (p++; p < end && *p != '"'; p++)
				if (*p == '\\') p++;
		} else if (*p == '{' || *p == '[') depth++;
		else if (*p == '}' || *p == ']') depth--;
	}
	return depth + strings;
}

EXPORT("hash") uint32_t hash(void) {
	uint32_t h = 2166136261u;
	for (uint32_t i = 0; i < 32768; i++) h = (h ^ buf[i]) * 16777619u;
	return h;
}

EXPORT("matrix") uint32_t matrix(void) {
	for (int i = 0; i < 32; i++)
		for (int j = 0; j < 32; j++) {
			double s = 0;
			for (int k = 0; k < 32; k++) s += a[i][k] * b[k][j];
			c[i][j] = s;
		}
	return c[31][31];
}

__attribute__((noinline)) static uint32_t fib_of(uint32_t n) { return n < 2 ? n : fib_of(n - 1) + fib_of(n - 2); }
EXPORT("fib") uint32_t fib(void) { return fib_of(20); }

__attribute__((noinline)) static uint32_t step(uint32_t x) { return x ^ x << 13 ^ x >> 17; }
EXPORT("calls") uint32_t calls(void) {
	uint32_t x = 7;
	for (int i = 0; i < 20000; i++) x = step(x);
	return x;
}

EXPORT("sieve") uint32_t sieve(void) {
	static uint8_t composite[20000];
	uint32_t n = 0;
	for (uint32_t i = 0; i < sizeof composite; i++) composite[i] = 0;
	for (uint32_t i = 2; i < sizeof composite; i++) {
		if (composite[i]) continue;
		n++;
		for (uint32_t j = i * 2; j < sizeof composite; j += i) composite[j] = 1;
	}
	return n;
}

EXPORT("copies") uint32_t copies(void) {
	for (uint32_t i = 0; i < 2000; i++) __builtin_memcpy(buf + 32768 + i, buf + i, 100 + (i & 63));
	return buf[40000];
}
