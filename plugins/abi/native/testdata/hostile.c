// A guest that does what the first byte of an event's data says, most of it wrong.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#define EXPORT(name) __attribute__((export_name(name)))
#define IMPORT(name) __attribute__((import_module("millrace_v1"), import_name(name)))

IMPORT("log") void host_log(int32_t level, const void *p, uint32_t n);
IMPORT("config_get") int64_t host_config(const void *k, uint32_t klen, void *buf, uint32_t cap);
IMPORT("now") int64_t host_now(void);
IMPORT("clock") int64_t host_clock(void);
IMPORT("random") void host_random(void *p, uint32_t n);
IMPORT("secret_get") int64_t host_secret(const void *k, uint32_t klen, void *buf, uint32_t cap);
IMPORT("counter_add") void host_count(const void *name, uint32_t n, int64_t delta);
IMPORT("http") int64_t host_http(const void *req, uint32_t n, void *buf, uint32_t cap);

static _Alignas(8) uint8_t in[1 << 20], out[6 << 20];
static uint32_t len;
static int poisoned, refuse, stuck;
static int64_t born;

__attribute__((constructor)) static void start(void) {
	struct timespec ts;
	clock_gettime(CLOCK_REALTIME, &ts);
	born = ts.tv_sec * 1000000000LL + ts.tv_nsec;
	char v[8];
	stuck = host_config("stuck", 5, v, sizeof v) >= 0;
	if (host_config("spin", 4, v, sizeof v) >= 0) for (volatile int x = 0;; x++);
	if (host_config("crash", 5, v, sizeof v) >= 0 || host_clock() < 0) __builtin_trap();
}

EXPORT("millrace_abi_v1") uint32_t abi(void) {
	char v[8] = {0};
	return host_config("features", 8, v, sizeof v) >= 0 ? atoi(v) : 0;
}

EXPORT("millrace_buffer") uint8_t *buffer(uint32_t n) { return n > sizeof in || refuse ? 0 : in; }

static uint8_t *put(uint32_t index, int kind, int flags, uint32_t arg, const void *attr, int attrs, uint32_t alen, const void *data, uint32_t n) {
	uint8_t *r = out + len;
	uint32_t off = 24 + alen, size = (off + n + 7) & ~7u, zero = 0;
	uint16_t count = attrs;
	memset(r, 0, size);
	memcpy(r, &size, 4);
	r[4] = kind;
	r[5] = flags;
	memcpy(r + 6, &count, 2);
	memcpy(r + 8, &index, 4);
	memcpy(r + 12, &arg, 4);
	memcpy(r + 16, n ? &off : &zero, 4);
	memcpy(r + 20, &n, 4);
	memcpy(r + 24, attr, alen);
	memcpy(r + off, data, n);
	len += size;
	return r;
}
#define SAY(kind, arg) put(i, kind, 0, arg, 0, 0, 0, 0, 0)

static int attr(uint8_t *a, int tag, const char *key, const char *value) {
	uint16_t k = strlen(key);
	uint32_t v = strlen(value);
	memset(a, 0, 8);
	a[0] = tag;
	memcpy(a + 2, &k, 2);
	memcpy(a + 4, &v, 4);
	memcpy(a + 8, key, k);
	memcpy(a + 8 + k, value, v);
	return (8 + k + v + 3) & ~3;
}

__attribute__((noinline)) static int deep(volatile int *p) { volatile int x[64] = {*p}; return deep(x) + x[3]; }

// twice calls itself twice: without a loop it never ends either.
__attribute__((noinline)) static int twice(volatile int n) { return n ? twice(n - 1) + twice(n - 1) : 1; }

EXPORT("millrace_handle") uint64_t handle(uint8_t *ptr, uint32_t n) {
	uint32_t count, *cursor = (uint32_t *)(ptr + 12);
	uint8_t *at = ptr + 24, a[128] = {0};
	uint64_t answer = (uint64_t)(uintptr_t)out << 32;
	memcpy(&count, ptr + 4, 4);
	len = 0;
	for (uint32_t i = 0; i < count; i++) {
		uint32_t size, off, dlen;
		memcpy(&size, at, 4);
		memcpy(&off, at + 32, 4);
		memcpy(&dlen, at + 36, 4);
		uint8_t *d = at + off;
		if (!stuck && *cursor != 0xFFFFFFFF) *cursor = i;
		if (poisoned) __builtin_trap();
		switch (*d) {
		case 'd': SAY(2, 0); break;
		case 't': __builtin_trap();
		case 'x': fprintf(stderr, "bye\n"); _Exit(3);
		case '0': return 0;
		case 's': break;
		case 'k': SAY(9, 0); break;
		case 'o': return 0xFFFFFFF000000100ull;
		case 'r': if (i) put(i - 1, 0, 0, 0, 0, 0, 0, 0, 0); SAY(0, 0); break;
		case 'i': put(77, 0, 0, 0, 0, 0, 0, 0, 0); break;
		case 'm': for (;;) { char *p = malloc(1 << 20); if (!p) abort(); *(volatile char *)p = 1; }
		case 'w': refuse = 1; SAY(0, 0); break;
		case 'F': for (int k = 0; k < 1025; k++) put(i, 1, 1, 0, 0, 0, 0, "x", 1); break;
		case 'b': put(i, 1, 1, 0, 0, 0, 0, in, 1 << 19); break;
		case 'e': put(i, 1, 0, 0, 0, 0, 0, "{}", 2); break;
		case 'a': put(i, 1, 1, 0, a, 1, attr(a, 0, "Bad-Name", "v"), "{}", 2); break;
		case 'T': put(i, 1, 1, 0, a, 1, attr(a, 7, "", "no/topic"), "{}", 2); break;
		case 'z': put(i, 1, 1, 0, a, 1, attr(a, 10, "", "yesterday"), "{}", 2); break;
		case 'l': SAY(0, 0)[0] = 20; break;
		case 'q': memset(SAY(1, 0) + 16, 0xFF, 8); break;
		case 'h': put(i, 1, 1, 0, a, 9, attr(a, 0, "x", "v"), 0, 0); break;
		case 'g': put(i, 1, 4, 0, 0, 0, 0, 0, 0); break;
		case '+': put(i, 1, 1, 0, a, 1, attr(a, 7, "", "audit"), "{}", 2); break;
		case 'R': put(i, 1, 1, 0, 0, 0, 0, "{}", 2); put(i, 4, 0, 7, 0, 0, 0, "why", 3); break;
		case 'P': SAY(0, 0); put(i, 1, 1, 0, 0, 0, 0, "{}", 2); break;
		case 'D': SAY(2, 0); put(i, 1, 1, 0, 0, 0, 0, "{}", 2); break;
		case 'E': put(i, 1, 1, 0, 0, 0, 0, "{}", 2); SAY(0, 0); break;
		case '2': SAY(0, 0); SAY(2, 0); break;
		case 'y': SAY(3, 5000); break;
		case 'Y': put(i, 5, 0, 201, 0, 0, 0, "hi", 2); SAY(0, 0); break;
		case 'U': SAY(5, 99); break;
		case 'A': put(i, 5, 0, 200, a, 1, attr(a, 5, "", "a/b"), "hi", 2); SAY(0, 0); break;
		case 'I': put(i, 5, 0, 200, a, 1, attr(a, 4, "", "s"), "hi", 2); SAY(0, 0); break;
		case 'S': poisoned = 1; SAY(0, 0); break;
		case 'L': { volatile int x[64] = {1}; SAY(deep(x) ? 0 : 2, 0); break; }
		case 'B': for (int k = 0; k < 50; k++) *(volatile char *)malloc(1 << 20) = 1; SAY(0, 0); break;
		case 'C': *cursor = 0xFFFFFFFF; SAY(0, 0); break;
		case 'G': for (int k = 0; k < 1000; k++) host_log(1, d, dlen); SAY(0, 0); break;
		case 'O': for (int k = 0; k < 1000; k++) printf("line %d\n", k); fflush(stdout); SAY(0, 0); break;
		case 'N': { struct timespec ts = {3600, 0}; nanosleep(&ts, 0); SAY(0, 0); break; }
		case 'j': for (volatile int x = 0;; x++);
		case 'J': for (volatile int x = 0; x < atoi((char *)d + 1); x++); SAY(0, 0); break;
		case 'f': for (;;) memset(out, 1, sizeof out), *(volatile uint8_t *)out = 2;
		case '1': SAY(twice(60) ? 0 : 2, 0); break;
		case 'n': for (volatile int x = 0; dlen > 2 && x < atoi((char *)d + 2); x++); SAY(3, count); break;
		case 'V': for (;;) host_log(1, "again", 5);
		case 'Z': {
			char v[16];
			int64_t k = host_secret(d + 1, dlen - 1, v, sizeof v);
			put(i, 1, 1, 0, 0, 0, 0, k < 0 ? "none" : v, k < 0 ? 4 : k);
			break;
		}
		case '#': for (int k = 0; k < 70; k++) { char name[16]; host_count(name, snprintf(name, sizeof name, "n%d", k), 2); } host_count("no good", 7, 1); host_count("n1", 2, -5); SAY(0, 0); break;
		case 'H': { // GET what follows; the answer, fetched in two steps, or the error
			static uint8_t req[512], got[4096];
			uint16_t head[2] = {1, 3};
			uint32_t lens[4] = {dlen - 1, 8, 2, 200};
			memcpy(req, head, 4);
			memcpy(req + 4, lens, 16);
			memcpy(req + 20, "GET", 3);
			memcpy(req + 23, d + 1, dlen - 1);
			memcpy(req + 23 + dlen - 1, "a: b\r\n\r\nhi", 10);
			int64_t k = host_http(req, 23 + dlen - 1 + 10, got, 4);
			if (k > 4) k = host_http(0, 0, got, sizeof got);
			put(i, 1, 1, k, 0, 0, 0, got, k > 0 ? k : 0);
			break;
		}
		case 'c': {
			struct { int64_t now, wall, born; uint8_t random[8], wasi[8]; } v;
			struct timespec ts;
			clock_gettime(CLOCK_REALTIME, &ts);
			v.now = host_now();
			v.wall = ts.tv_sec * 1000000000LL + ts.tv_nsec;
			v.born = born;
			host_random(v.random, 8);
			getentropy(v.wasi, 8);
			put(i, 1, 1, 0, 0, 0, 0, &v, sizeof v);
			break;
		}
		case 'v': { // what the batch's header and record say
			uint32_t w[4];
			memcpy(w, ptr, 4);
			memcpy(w + 1, ptr + 8, 4);
			memcpy(w + 2, at + 24, 4);
			w[3] = 0;
			memcpy(w + 3, at + 6, 2);
			put(i, 1, 1, 0, 0, 0, 0, w, sizeof w);
			break;
		}
		default: SAY(0, 0);
		}
		at += size;
	}
	if (*cursor != 0xFFFFFFFF) *cursor = count;
	return answer | len;
}
