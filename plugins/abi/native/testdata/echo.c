// A guest that emits the batch as it got it, or answers what its configuration says.
#include <stdint.h>
#include <string.h>

#define EXPORT(name) __attribute__((export_name(name)))
__attribute__((import_module("millrace_v1"), import_name("config_get"))) int64_t host_config(const void *k, uint32_t klen, void *buf, uint32_t cap);

static _Alignas(8) uint8_t in[4096], out[4096];

EXPORT("millrace_abi_v1") uint32_t abi(void) { return 0; }
EXPORT("millrace_buffer") uint8_t *buffer(uint32_t n) { return n > sizeof in ? 0 : in; }

EXPORT("millrace_handle") uint64_t handle(uint8_t *ptr, uint32_t n) {
	int64_t size = host_config("answer", 6, out, sizeof out);
	if (size < 0) {
		uint32_t head[6] = {(24 + n + 7) & ~7u, 1 | 1 << 8, 0, 0, 24, n}; // EMIT, keeping the attributes
		memcpy(out, head, 24);
		memcpy(out + 24, ptr, n);
		size = head[0];
	}
	return (uint64_t)(uintptr_t)out << 32 | size;
}
