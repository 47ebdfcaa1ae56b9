// The benchmark's guest: redacts the member "email" of an event's JSON data and adds "redacted": true, by
// scanning the top level of the document rather than decoding it. Events without the member pass.
//
// clang-19 --target=wasm32-wasi -mexec-model=reactor -O3 -mbulk-memory -Wl,--strip-all -o redact.wasm redact.c
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT(name) __attribute__((export_name(name)))

typedef struct {
	uint16_t version, flags;
	uint32_t count, total, cursor;
	uint64_t zero;
} batch;

typedef struct {
	uint32_t len;
	uint16_t attrs, flags;
	uint64_t offset;
	int64_t time;
	uint32_t attempt, partition, data_off, data_len, attr_off, hops;
} event;

typedef struct {
	uint32_t len;
	uint8_t kind, flags;
	uint16_t attrs;
	uint32_t index, arg, data_off, data_len;
} result;

static uint8_t *in, *out;
static uint32_t in_cap, out_cap, out_len;

// grow makes room for n bytes in a buffer of 8-byte alignment (malloc's is 16).
static int grow(uint8_t **buf, uint32_t *cap, uint32_t used, uint32_t n) {
	if (n <= *cap) return 1;
	uint32_t want = n < 65536 ? 65536 : n * 2;
	uint8_t *p = malloc(want);
	if (!p) return 0;
	memcpy(p, *buf, used);
	free(*buf);
	*buf = p;
	*cap = want;
	return 1;
}

EXPORT("millrace_abi_v1") uint32_t millrace_abi_v1(void) { return 0; }

EXPORT("millrace_buffer") uint8_t *millrace_buffer(uint32_t n) { return grow(&in, &in_cap, 0, n) ? in : 0; }

static const uint8_t *string_end(const uint8_t *p, const uint8_t *end) {
	for (p++; p < end; p++) {
		if (*p == '\\') p++;
		else if (*p == '"') return p + 1;
	}
	return 0;
}

// value_end returns where the JSON value at p ends, 0 if the document is broken.
static const uint8_t *value_end(const uint8_t *p, const uint8_t *end) {
	if (*p == '"') return string_end(p, end);
	if (*p != '{' && *p != '[') {
		while (p < end && *p != ',' && *p != '}' && *p != ']' && *p > ' ') p++;
		return p;
	}
	for (int depth = 0; p < end;) {
		if (*p == '"') {
			if (!(p = string_end(p, end))) return 0;
			continue;
		}
		if (*p == '{' || *p == '[') depth++;
		else if ((*p == '}' || *p == ']') && --depth == 0) return p + 1;
		p++;
	}
	return 0;
}

static const uint8_t *space(const uint8_t *p, const uint8_t *end) {
	while (p < end && (*p == ' ' || *p == '\n' || *p == '\t' || *p == '\r')) p++;
	return p;
}

// find returns the value of a top-level member and where it ends.
static const uint8_t *find(const uint8_t *p, const uint8_t *end, const char *key, uint32_t klen, const uint8_t **vend) {
	p = space(p, end);
	if (p >= end || *p != '{') return 0;
	p = space(p + 1, end);
	while (p < end && *p == '"') {
		const uint8_t *k = p + 1, *ke = string_end(p, end);
		if (!ke) return 0;
		p = space(ke, end);
		if (p >= end || *p != ':') return 0;
		p = space(p + 1, end);
		if (p >= end || !(*vend = value_end(p, end))) return 0;
		if ((uint32_t)(ke - 1 - k) == klen && !memcmp(k, key, klen)) return p;
		p = space(*vend, end);
		if (p >= end || *p != ',') return 0;
		p = space(p + 1, end);
	}
	return 0;
}

EXPORT("millrace_handle") uint64_t millrace_handle(uint8_t *ptr, uint32_t len) {
	static const char mask[] = "\"***\"", flag[] = "\"redacted\":true,";
	batch *b = (batch *)ptr;
	uint8_t *at = ptr + sizeof *b;
	out_len = 0;
	for (uint32_t i = 0; i < b->count; i++) {
		b->cursor = i;
		event *e = (event *)at;
		at += e->len;
		const uint8_t *doc = (uint8_t *)e + e->data_off, *end = doc + e->data_len, *vend, *v = find(doc, end, "email", 5, &vend);
		if (!grow(&out, &out_cap, out_len, out_len + sizeof(result) + e->data_len + 64)) return 0;
		result *r = (result *)(out + out_len);
		memset(r, 0, sizeof *r);
		r->index = i;
		r->len = sizeof *r;
		if (v) {
			const uint8_t *open = memchr(doc, '{', end - doc) + 1;
			uint8_t *start = (uint8_t *)(r + 1), *w = start;
#define PUT(p, n) (memcpy(w, p, n), w += (n))
			PUT(doc, open - doc);
			PUT(flag, sizeof flag - 1);
			PUT(open, v - open);
			PUT(mask, sizeof mask - 1);
			PUT(vend, end - vend);
			r->kind = 1;
			r->flags = 1;
			r->data_off = sizeof *r;
			r->data_len = w - start;
			r->len = (sizeof *r + r->data_len + 7) & ~7u;
		}
		out_len += r->len;
	}
	b->cursor = b->count;
	return (uint64_t)(uintptr_t)out << 32 | out_len;
}
