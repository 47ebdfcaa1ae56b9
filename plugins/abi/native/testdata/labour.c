// A guest that lets host functions work for it: over and over what the first byte of an event's data says.
#include <stdint.h>
#include <wasi/api.h>

#define EXPORT(name) __attribute__((export_name(name)))
#define IMPORT(name) __attribute__((import_module("millrace_v1"), import_name(name)))

IMPORT("config_get") int64_t host_config(const void *k, uint32_t klen, void *buf, uint32_t cap);
IMPORT("secret_get") int64_t host_secret(const void *k, uint32_t klen, void *buf, uint32_t cap);
IMPORT("random") void host_random(void *p, uint32_t n);
IMPORT("counter_add") void host_count(const void *name, uint32_t n, int64_t delta);
IMPORT("kv_put") int32_t host_put(const void *k, uint32_t klen, const void *v, uint32_t vlen, int64_t ttl);
IMPORT("http") int64_t host_http(const void *req, uint32_t n, void *buf, uint32_t cap);
IMPORT("kv_get") int64_t host_get(const void *k, uint32_t klen, void *buf, uint32_t cap);

#define BIG (32 << 20)
#define MANY 200000
static _Alignas(8) uint8_t in[1 << 16], big[BIG];
static __wasi_ciovec_t all[MANY], none[MANY];
static __wasi_subscription_t subs[MANY];
static __wasi_event_t events[MANY];

EXPORT("millrace_abi_v1") uint32_t abi(void) { return 0; }
EXPORT("millrace_buffer") uint8_t *buffer(uint32_t n) { return n > sizeof in ? 0 : in; }

EXPORT("millrace_handle") uint64_t handle(uint8_t *ptr, uint32_t n) {
	__wasi_size_t size;
	__wasi_fd_t fd;
	uint8_t *at = ptr + 24;
	for (int i = 0; i < MANY; i++) {
		all[i].buf = big, all[i].buf_len = BIG;
		subs[i].u.tag = __WASI_EVENTTYPE_CLOCK;
	}
	for (;;) switch (at[*(uint32_t *)(at + 32)]) {
	case 'r': host_random(big, BIG); break;
	case 'e': __wasi_random_get(big, BIG); break;
	case 'c': host_config(big, BIG, 0, 0); break;
	case 's': host_secret(big, BIG, 0, 0); break;
	case 'n': host_count(big, BIG, 1); break;
	case 'p': host_put("k", 1, big, 1 << 16, 0); break;
	case 'g': host_get("k", 1, big, BIG); break;
	case 'w': __wasi_fd_write(1, all, MANY, &size); break;
	case 'z': __wasi_fd_write(1, none, MANY, &size); break;
	case 'y': __wasi_poll_oneoff(subs, events, MANY, &size); break;
	case 'o': for (int i = 0; i < BIG - 1; i++) big[i] = 'a' + (i & 1); while (1) __wasi_path_open(3, 0, (char *)big, 0, 0, 0, 0, &fd); break;
	case 'h': { // a request with a million headers; an answer of another code than -6 is a trap
		uint32_t head[5] = {1 | 3 << 16, 18, BIG / 2, 0, 0};
		__builtin_memcpy(big, head, 20);
		__builtin_memcpy(big + 20, "GEThttp://h.example/x", 21);
		for (int i = 0; i < BIG / 2; i++) big[41 + i] = "ab: c\r\n\r"[i % 7];
		if (host_http(big, 41 + BIG / 2, 0, 0) != -6) __builtin_trap();
		return 0;
	}
	default: return 0;
	}
}
