// Functions for the Millrace event router in C11. Include it in one file, which defines
//
//	void millrace_event(const mr_event *e, mr_results *out);   // says of each event what shall become of it
//	void millrace_start(void);                                 // called once, first: the place to read configuration
//
// and say what the function needs of its router before the include: MILLRACE_KV, MILLRACE_HTTP and
// MILLRACE_SECRETS bring their functions, MILLRACE_REPLY says that replies matter. A router that lacks one refuses
// the module instead of failing its events; with MILLRACE_OPTIONAL the function is taken all the same, and sees
// MR_DENIED.
//
// A handler must say something about every event. One that returns in silence has not dropped the event: the
// router counts it as a failure, because silence is how bugs lose events. A trap fails the event at work, alone.
#ifndef MILLRACE_H
#define MILLRACE_H

#include "millrace_json.h"

// ---- what the router does for a function ----

#define MR_IMPORT(fn) __attribute__((import_module("millrace_v1"), import_name(#fn))) extern

enum { MR_DEBUG, MR_INFO, MR_WARN, MR_ERROR };

// Why the router did not do what it was asked for.
enum {
	MR_NOT_FOUND = -1,
	MR_DENIED = -2,
	MR_TOO_BIG = -3,
	MR_DEADLINE = -4,
	MR_IO = -5,
	MR_BAD_ARGUMENT = -6,
};

MR_IMPORT(log) void mr_host_log(int32_t level, const void *p, uint32_t n);
MR_IMPORT(config_get) int64_t mr_host_config_get(const void *k, uint32_t klen, void *buf, uint32_t room);
MR_IMPORT(now) int64_t mr_host_now(void);
MR_IMPORT(clock) int64_t mr_host_clock(void);
MR_IMPORT(random) void mr_host_random(void *p, uint32_t n);
MR_IMPORT(counter_add) void mr_host_counter_add(const void *name, uint32_t n, int64_t delta);

// mr_log writes a line to the function's log, which is bounded in length and rate.
static inline void mr_log(int level, mr_str message) { mr_host_log(level, message.p, (uint32_t)message.n); }

// mr_ask calls get with what room buf has, and again with more if the answer is larger.
static inline int64_t mr_ask(int64_t (*get)(const void *, uint32_t, void *, uint32_t), mr_str key, mr_buf *buf) {
	for (size_t room = 256;;) {
		uint8_t *to = mr_reserve(buf, room);
		int64_t n = get(key.p, (uint32_t)key.n, to, (uint32_t)(buf->room - buf->n));
		if (n < 0) return n;
		if ((uint64_t)n <= buf->room - buf->n) {
			buf->n += (size_t)n;
			return n;
		}
		room = (size_t)n;
	}
}

// mr_config appends a value of the function's configuration and returns its size, or a negative error. Read what
// does not change once, in millrace_start.
static inline int64_t mr_config(mr_str key, mr_buf *buf) { return mr_ask(mr_host_config_get, key, buf); }

// mr_now is when the router received the event at work, in Unix nanoseconds: the same in every attempt, so that a
// retry decides alike. mr_clock is the true time.
static inline int64_t mr_now(void) { return mr_host_now(); }
static inline int64_t mr_clock(void) { return mr_host_clock(); }

// mr_random writes bytes that are the same in every attempt at the event at work and unpredictable otherwise.
static inline void mr_random(void *p, size_t n) { mr_host_random(p, (uint32_t)n); }

// mr_count adds to a counter of the function, which the router shows with its metrics.
static inline void mr_count(mr_str name, int64_t delta) { mr_host_counter_add(name.p, (uint32_t)name.n, delta); }

#ifdef MILLRACE_SECRETS
MR_IMPORT(secret_get) int64_t mr_host_secret_get(const void *k, uint32_t klen, void *buf, uint32_t room);

// mr_secret appends a secret that the function was given and returns its size, or a negative error.
static inline int64_t mr_secret(mr_str name, mr_buf *buf) { return mr_ask(mr_host_secret_get, name, buf); }
#endif

#ifdef MILLRACE_KV
MR_IMPORT(kv_get) int64_t mr_host_kv_get(const void *k, uint32_t klen, void *buf, uint32_t room);
MR_IMPORT(kv_put) int32_t mr_host_kv_put(const void *k, uint32_t klen, const void *v, uint32_t vlen, int64_t ttl);
MR_IMPORT(kv_del) int32_t mr_host_kv_del(const void *k, uint32_t klen);
MR_IMPORT(kv_add) int32_t mr_host_kv_add(const void *k, uint32_t klen, int64_t delta, int64_t *sum);

// The function's state: values by key, which belong to the function's name and outlive its versions. Writes take
// effect with the function's results and the position in the topic, or not at all. mr_kv_get appends a value and
// returns its size, or a negative error, MR_NOT_FOUND where there is none; the others return 0 or an error. A
// ttl of 0 ms keeps the value until it is deleted.
static inline int64_t mr_kv_get(mr_str key, mr_buf *buf) { return mr_ask(mr_host_kv_get, key, buf); }
static inline int mr_kv_put(mr_str key, mr_str value, int64_t ttl_ms) {
	return mr_host_kv_put(key.p, (uint32_t)key.n, value.p, (uint32_t)value.n, ttl_ms);
}
static inline int mr_kv_delete(mr_str key) { return mr_host_kv_del(key.p, (uint32_t)key.n); }
static inline int mr_kv_add(mr_str key, int64_t delta, int64_t *sum) {
	return mr_host_kv_add(key.p, (uint32_t)key.n, delta, sum);
}
#endif

static inline uint8_t *mr_le(uint8_t *p, uint64_t v, int bytes) {
	for (; bytes > 0; bytes--, v >>= 8) *p++ = (uint8_t)v;
	return p;
}

#ifdef MILLRACE_HTTP
MR_IMPORT(http) int64_t mr_host_http(const void *req, uint32_t n, void *buf, uint32_t room);

// A request. headers are "name: value\r\n" lines; a timeout of 0 leaves it to the router.
typedef struct {
	mr_str method, url, headers, body;
	uint32_t timeout_ms;
} mr_request;

// An answer, whatever its status says: views of the buffer that it was read to. headers are lines as above.
typedef struct {
	int status;
	mr_str headers, body;
} mr_response;

// mr_http asks, to the hosts that the function's configuration allows and within the call's time. It returns 0 or
// a negative error. buf is used for the request and the answer. A retry of an event asks again.
static inline int mr_http(const mr_request *r, mr_response *answer, mr_buf *buf) {
	if (r->method.n > UINT16_MAX) return MR_BAD_ARGUMENT;
	buf->n = 0;
	uint8_t *h = mr_reserve(buf, 20);
	h = mr_le(h, 1, 2);
	h = mr_le(h, r->method.n, 2);
	h = mr_le(h, r->url.n, 4);
	h = mr_le(h, r->headers.n, 4);
	h = mr_le(h, r->body.n, 4);
	mr_le(h, r->timeout_ms, 4);
	buf->n = 20;
	mr_append(buf, r->method);
	mr_append(buf, r->url);
	mr_append(buf, r->headers);
	mr_append(buf, r->body);
	size_t asked = buf->n;
	uint8_t *to = mr_reserve(buf, 16 << 10);
	int64_t n = mr_host_http(buf->p, (uint32_t)asked, to, (uint32_t)(buf->room - asked));
	if (n > (int64_t)(buf->room - asked)) { // the router keeps it: no request asks for what it has
		to = mr_reserve(buf, (size_t)n);
		n = mr_host_http(buf->p, 0, to, (uint32_t)(buf->room - asked));
	}
	if (n < 0) return (int)n;
	uint32_t head, body;
	if (n < 12 || (uint64_t)n > buf->room - asked || to[0] != 1 || to[1] != 0) return MR_IO;
	__builtin_memcpy(&head, to + 4, 4);
	__builtin_memcpy(&body, to + 8, 4);
	if ((uint64_t)head + body + 12 != (uint64_t)n) return MR_IO;
	*answer = (mr_response){to[2] | to[3] << 8, {to + 12, head}, {to + 12 + head, body}};
	return 0;
}
#endif

// ---- events ----

// One event as the router hands it over: a view of the batch. Texts that are absent are empty.
typedef struct {
	const uint8_t *rec;
} mr_event;

static inline uint16_t mr_u16(const uint8_t *p) {
	uint16_t v;
	__builtin_memcpy(&v, p, 2);
	return v;
}
static inline uint32_t mr_u32(const uint8_t *p) {
	uint32_t v;
	__builtin_memcpy(&v, p, 4);
	return v;
}

enum {
	MR_EXTENSION, MR_ID, MR_SOURCE, MR_TYPE, MR_SUBJECT, MR_CONTENT_TYPE, MR_SCHEMA, MR_TOPIC, MR_KEY, MR_TRACE_PARENT, MR_TIME
};

// mr_attribute returns an attribute by its tag above, and an extension by its name too; p is NULL if it is absent.
static inline mr_str mr_attribute(const mr_event *e, uint8_t tag, mr_str name) {
	const uint8_t *a = e->rec + mr_u32(e->rec + 40);
	for (uint16_t left = mr_u16(e->rec + 4); left; left--) {
		uint32_t klen = mr_u16(a + 2), vlen = mr_u32(a + 4);
		if (a[0] == tag && mr_eq((mr_str){a + 8, klen}, name)) return (mr_str){a + 8 + klen, vlen};
		a += (8 + klen + vlen + 3) & ~3u;
	}
	return MR_NONE;
}

static inline mr_str mr_id(const mr_event *e) { return mr_attribute(e, MR_ID, MR_NONE); }
static inline mr_str mr_source(const mr_event *e) { return mr_attribute(e, MR_SOURCE, MR_NONE); }
static inline mr_str mr_type(const mr_event *e) { return mr_attribute(e, MR_TYPE, MR_NONE); }
static inline mr_str mr_subject(const mr_event *e) { return mr_attribute(e, MR_SUBJECT, MR_NONE); }
static inline mr_str mr_content_type(const mr_event *e) { return mr_attribute(e, MR_CONTENT_TYPE, MR_NONE); }
static inline mr_str mr_schema(const mr_event *e) { return mr_attribute(e, MR_SCHEMA, MR_NONE); }
static inline mr_str mr_topic(const mr_event *e) { return mr_attribute(e, MR_TOPIC, MR_NONE); }
static inline mr_str mr_key(const mr_event *e) { return mr_attribute(e, MR_KEY, MR_NONE); }
static inline mr_str mr_trace_parent(const mr_event *e) { return mr_attribute(e, MR_TRACE_PARENT, MR_NONE); }
static inline mr_str mr_time(const mr_event *e) { return mr_attribute(e, MR_TIME, MR_NONE); } // RFC 3339, as it was written
static inline mr_str mr_extension(const mr_event *e, mr_str name) { return mr_attribute(e, MR_EXTENSION, name); }

// mr_data is the event's data; p is NULL if it has none.
static inline mr_str mr_data(const mr_event *e) {
	if (mr_u16(e->rec + 6) & 4) return MR_NONE;
	return (mr_str){e->rec + mr_u32(e->rec + 32), mr_u32(e->rec + 36)};
}
static inline bool mr_binary(const mr_event *e) { return mr_u16(e->rec + 6) & 8; }       // bytes rather than JSON or text
static inline bool mr_reply_wanted(const mr_event *e) { return mr_u16(e->rec + 6) & 1; } // somebody waits
static inline uint32_t mr_attempt(const mr_event *e) { return mr_u32(e->rec + 24); }     // from 1
static inline uint32_t mr_partition(const mr_event *e) { return mr_u32(e->rec + 28); }
static inline uint32_t mr_hops(const mr_event *e) { return mr_u32(e->rec + 44); } // topics that its ancestors passed
static inline uint64_t mr_offset(const mr_event *e) { return mr_u32(e->rec + 8) | (uint64_t)mr_u32(e->rec + 12) << 32; }
static inline int64_t mr_received(const mr_event *e) { // Unix nanoseconds
	return (int64_t)(mr_u32(e->rec + 16) | (uint64_t)mr_u32(e->rec + 20) << 32);
}

// ---- results ----

// Takes what a handler says about its event: one of mr_pass, mr_drop, mr_retry and mr_reject, or any number of
// events by mr_replace, mr_relabel and mr_emit. mr_pass may come with more events after it. mr_retry and mr_reject
// discard the events before them. mr_reply may come beside anything. Other combinations, and silence, fail the
// event at the router. All bytes are copied at once.
typedef struct {
	mr_buf buf;
	uint32_t index;
} mr_results;

// An attribute for an event that a function makes: a tag of those above, an extension with its name. unset removes
// an attribute that the event would have of its input. MR_TOPIC sends the event to another topic.
typedef struct {
	uint8_t tag;
	bool unset;
	mr_str name, value;
} mr_attr;

static inline void mr_pad(mr_buf *b, size_t to) {
	while (b->n % to) mr_push(b, 0);
}

static inline void mr_result(mr_results *r, uint8_t kind, uint8_t flags, uint32_t arg, mr_str data, const mr_attr *attrs, size_t count) {
	static const uint8_t kinds[] = {[MR_SOURCE] = 5, [MR_SCHEMA] = 4, [MR_TIME] = 6};
	size_t start = r->buf.n, off;
	mr_reserve(&r->buf, 24 + data.n + 8);
	r->buf.n += 24;
	for (size_t i = 0; i < count; i++) {
		const mr_attr *a = &attrs[i];
		uint8_t *h = mr_reserve(&r->buf, 8);
		*h++ = a->tag;
		*h++ = a->tag < sizeof kinds ? kinds[a->tag] : 0;
		h = mr_le(h, a->name.n, 2);
		mr_le(h, a->unset ? UINT32_MAX : a->value.n, 4);
		r->buf.n += 8;
		mr_append(&r->buf, a->name);
		if (!a->unset) mr_append(&r->buf, a->value);
		mr_pad(&r->buf, 4);
	}
	off = r->buf.n - start;
	mr_append(&r->buf, data);
	mr_pad(&r->buf, 8);
	uint8_t *h = r->buf.p + start;
	h = mr_le(h, r->buf.n - start, 4);
	*h++ = kind;
	*h++ = flags;
	h = mr_le(h, count, 2);
	h = mr_le(h, r->index, 4);
	h = mr_le(h, arg, 4);
	h = mr_le(h, data.p ? off : 0, 4);
	mr_le(h, data.n, 4);
}

// mr_pass delivers the event unchanged; mr_drop acknowledges it and delivers nothing.
static inline void mr_pass(mr_results *r) { mr_result(r, 0, 0, 0, MR_NONE, 0, 0); }
static inline void mr_drop(mr_results *r) { mr_result(r, 2, 0, 0, MR_NONE, 0, 0); }

// mr_retry asks for another attempt after a while; 0 ms leaves the delay to the subscription's policy.
static inline void mr_retry(mr_results *r, uint32_t ms) { mr_result(r, 3, 0, ms, MR_NONE, 0, 0); }

// mr_reject moves the event to the dead letters now.
static inline void mr_reject(mr_results *r, uint32_t code, mr_str reason) { mr_result(r, 4, 0, code, reason, 0, 0); }

// mr_reply answers a synchronous call; the status is one of HTTP, an empty content type means JSON.
static inline void mr_reply(mr_results *r, uint32_t status, mr_str content_type, mr_str body) {
	mr_attr attr = {.tag = MR_CONTENT_TYPE, .value = content_type};
	mr_result(r, 5, 0, status, body, &attr, content_type.n > 0);
}

// mr_replace delivers an event with the input's attributes and other data. Attributes that are given change or
// remove those of the input. Without an id the router derives one from the input's, the same in every attempt.
static inline void mr_replace(mr_results *r, mr_str data, const mr_attr *attrs, size_t count) {
	mr_result(r, 1, 1, 0, data.p ? data : MR(""), attrs, count);
}

// mr_relabel delivers an event with the input's data and other attributes.
static inline void mr_relabel(mr_results *r, const mr_attr *attrs, size_t count) { mr_result(r, 1, 3, 0, MR_NONE, attrs, count); }

// mr_emit delivers an event of its own, which needs at least a source and a type. Data with a p of NULL means none.
static inline void mr_emit(mr_results *r, mr_str data, const mr_attr *attrs, size_t count) { mr_result(r, 1, 0, 0, data, attrs, count); }

// ---- what the module exports ----

void millrace_event(const mr_event *e, mr_results *out);
void millrace_start(void);

#define MR_EXPORT(fn) __attribute__((export_name(#fn)))

static mr_buf mr_batch;
static mr_results mr_out;

// The marker is called once, before any batch.
MR_EXPORT(millrace_abi_v1) uint32_t millrace_abi_v1(void) {
	uint32_t features = 0;
#ifndef MILLRACE_OPTIONAL
#ifdef MILLRACE_KV
	features |= 1;
#endif
#ifdef MILLRACE_HTTP
	features |= 2;
#endif
#ifdef MILLRACE_REPLY
	features |= 4;
#endif
#ifdef MILLRACE_SECRETS
	features |= 8;
#endif
#endif
	millrace_start();
	return features;
}

MR_EXPORT(millrace_buffer) uint8_t *millrace_buffer(uint32_t n) {
	if (n > mr_batch.room) {
		size_t room = n < 65536 ? 65536 : (size_t)n + n / 4;
		mr_free(mr_batch.p, mr_batch.room);
		mr_batch = (mr_buf){(uint8_t *)mr_alloc(room), 0, room};
		if (!mr_batch.p) mr_batch.room = 0;
	}
	return mr_batch.p;
}

MR_EXPORT(millrace_handle) uint64_t millrace_handle(uint8_t *batch, uint32_t n) {
	uint32_t count = mr_u32(batch + 4);
	const uint8_t *at = batch + 24;
	(void)n;
	mr_out.buf.n = 0;
	mr_reserve(&mr_out.buf, 4096); // no results must not look like a null answer
	for (uint32_t i = 0; i < count; i++) {
		*(volatile uint32_t *)(batch + 12) = i; // the router reads this cursor when the handler traps
		mr_event e = {at};
		mr_out.index = i;
		millrace_event(&e, &mr_out);
		at += mr_u32(at);
	}
	*(volatile uint32_t *)(batch + 12) = count;
	return (uint64_t)(uintptr_t)mr_out.buf.p << 32 | mr_out.buf.n;
}

#endif
