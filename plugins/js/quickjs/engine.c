// A guest that runs functions written in JavaScript: QuickJS behind the C SDK. The source comes from the router when
// the guest starts; prelude.js is what the source sees. Built by build.sh.
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <stdnoreturn.h>
#include <string.h>

#include "quickjs.h"

#define MILLRACE_KV
#define MILLRACE_HTTP
#define MILLRACE_SECRETS
#define MILLRACE_OPTIONAL // what the engine could do a function may never use
#include "millrace.h"

__attribute__((import_module("millrace_script"), import_name("source"))) int32_t host_source(void *buf, uint32_t room);
__attribute__((import_module("millrace_script"), import_name("fail"))) noreturn void host_fail(int32_t memory, const void *p, uint32_t n);

static const char prelude[] = {
#embed "prelude.js"
	, 0};

static JSRuntime *rt;
static JSContext *ctx;
static JSValue begin, finish, handler;
static const mr_event *event;
static mr_results *results;
static mr_buf docs[2]; // the event's data as edited, and where the next edit puts it
static int doc;        // the one in use
static bool edited;

static mr_str view(const char *p, size_t n) { return (mr_str){(const uint8_t *)p, n}; }

// What QuickJS allocates. It is told sizes, by which it decides when to look for garbage in cycles; starved says that
// there was no memory during the event at work, since there may be none for an error that says so either.
static bool starved;

static void *mem_alloc(JSMallocState *m, size_t n) {
	void *p = malloc(n);
	if (p) m->malloc_count++, m->malloc_size += malloc_usable_size(p);
	else starved = true;
	return p;
}
static void mem_free(JSMallocState *m, void *p) {
	if (!p) return;
	m->malloc_count--, m->malloc_size -= malloc_usable_size(p);
	free(p);
}
static void *mem_realloc(JSMallocState *m, void *p, size_t n) {
	if (!p) return n ? mem_alloc(m, n) : 0;
	if (!n) return mem_free(m, p), (void *)0;
	size_t had = malloc_usable_size(p);
	void *q = realloc(p, n);
	if (q) m->malloc_size += malloc_usable_size(q) - had;
	else starved = true;
	return q;
}
static size_t mem_size(const void *p) { return malloc_usable_size((void *)p); }

// die ends the call with what was thrown: its text and where. It takes no memory, of which there may be none.
static noreturn void die(JSContext *c) {
	static char said[4096];
	JSValue e = JS_GetException(c);
	const char *what = JS_IsNull(e) && starved ? 0 : JS_ToCString(c, e);
	bool memory = what ? !strcmp(what, "InternalError: out of memory") : starved;
	int n = snprintf(said, sizeof said, "%s", what ? what : memory ? "InternalError: out of memory" : "something was thrown that cannot be shown as text");
	if (n > (int)sizeof said / 2) n = sizeof said / 2; // the place is worth as much as the words
	if (what && JS_IsError(c, e)) {
		JSValue stack = JS_GetPropertyStr(c, e, "stack");
		const char *s = JS_IsString(stack) ? JS_ToCString(c, stack) : 0;
		while (s && *s == ' ') s++;
		int end = s ? (int)strlen(s) : 0;
		while (end && s[end - 1] == '\n') end--;
		if (end) n += snprintf(said + n, sizeof said - (size_t)n, " %.*s", end, s);
	}
	host_fail(memory, said, n < (int)sizeof said ? (uint32_t)n : sizeof said - 1);
}

// What promises were rejected with while nothing was there to handle it. What still is here when the event is over
// fails it: an error that nobody sees would lose events.
static JSValue rejected[16][2];
static int rejections;

static void on_rejection(JSContext *c, JSValueConst promise, JSValueConst reason, JS_BOOL handled, void *opaque) {
	(void)opaque;
	if (!handled) {
		if (rejections == sizeof rejected / sizeof *rejected) return; // those before it are enough to fail
		rejected[rejections][0] = JS_DupValue(c, promise);
		rejected[rejections++][1] = JS_DupValue(c, reason);
		return;
	}
	for (int i = 0; i < rejections; i++) {
		if (JS_VALUE_GET_PTR(rejected[i][0]) != JS_VALUE_GET_PTR(promise)) continue;
		JS_FreeValue(c, rejected[i][0]), JS_FreeValue(c, rejected[i][1]);
		rejections--;
		rejected[i][0] = rejected[rejections][0], rejected[i][1] = rejected[rejections][1];
		return;
	}
}

static JSValue text(mr_str s) { return s.p ? JS_NewStringLen(ctx, (const char *)s.p, s.n) : JS_UNDEFINED; }

// bytes is a copy as a Uint8Array.
static JSValue bytes(mr_str s) {
	if (!s.p) return JS_UNDEFINED;
	JSValue b = JS_NewArrayBufferCopy(ctx, s.p, s.n);
	if (JS_IsException(b)) return b;
	JSValue args[3] = {b, JS_UNDEFINED, JS_UNDEFINED}; // all of them are read, whatever their number
	JSValue a = JS_NewTypedArray(ctx, 1, args, JS_TYPED_ARRAY_UINT8);
	JS_FreeValue(ctx, b);
	return a;
}

// add puts an element at the end of a list that nothing else has seen yet; false if it could not be made.
static bool add(JSValue list, uint32_t at, JSValue v) {
	return !JS_IsException(v) && JS_DefinePropertyValueUint32(ctx, list, at, v, JS_PROP_C_W_E) >= 0;
}

// arg is an argument as text; free it with JS_FreeCString.
static bool arg(JSValueConst v, mr_str *s) {
	size_t n;
	const char *p = JS_ToCStringLen(ctx, &n, v);
	*s = view(p, n);
	return p != 0;
}
static void done(mr_str s) { JS_FreeCString(ctx, (const char *)s.p); }

static mr_str data(void) { return edited ? mr_view(&docs[doc]) : mr_data(event); }

static JSValue refused(const char *what, int64_t code) {
	static const char *const why[] = {"", "not found", "not allowed by the function's definition", "too big", "no answer in time", "the connection failed; the function's log says how", "a bad argument"};
	return JS_ThrowTypeError(ctx, "%s: %s", what, code < 0 && code >= -6 ? why[-code] : "failed");
}

#define FN(name) static JSValue name(JSContext *c, JSValueConst this, int argc, JSValueConst *argv)
#define ONE(s) \
	mr_str s; \
	if (!arg(argv[0], &s)) return JS_EXCEPTION

FN(host_text) { return text(data()); }
FN(host_edited) { return JS_NewBool(c, edited); }
FN(host_bytes) { return bytes(data()); }

// within is what to look into: the text that is given, else the event's data. Free what was given.
static bool within(int argc, int at, JSValueConst *argv, mr_str *given, mr_str *in) {
	*given = MR_NONE;
	if (argc > at && !arg(argv[at], given)) return false;
	*in = argc > at ? *given : data();
	return true;
}

#define LOOK(at) \
	mr_str given, in; \
	if (!within(argc, at, argv, &given, &in)) return JS_EXCEPTION
#define LOOKED \
	if (given.p) done(given)

FN(host_is_object) {
	LOOK(0);
	JSValue v = JS_NewBool(c, mr_is_object(in));
	LOOKED;
	return v;
}
FN(host_get) {
	ONE(path);
	LOOK(1);
	JSValue v = text(mr_get(in, path));
	done(path);
	LOOKED;
	return v;
}
FN(host_has) {
	ONE(path);
	LOOK(1);
	JSValue v = JS_NewBool(c, mr_has(in, path));
	done(path);
	LOOKED;
	return v;
}

static JSValue apply(const mr_edit *edit) {
	mr_buf *to = &docs[!doc];
	to->n = 0;
	switch (mr_apply(to, data(), edit, 1)) {
	case MR_OK: break;
	case MR_ERR_JSON: return JS_ThrowTypeError(ctx, "the data is not JSON");
	default: return JS_ThrowTypeError(ctx, "the data has no place for the path %.*s", edit->path.n < 100 ? (int)edit->path.n : 100, (const char *)edit->path.p);
	}
	doc = !doc;
	edited = true;
	return JS_UNDEFINED;
}

FN(host_set) {
	ONE(path);
	mr_str value;
	if (!arg(argv[1], &value)) return JS_EXCEPTION;
	JSValue v = apply(&(mr_edit){MR_SET, path, value});
	done(path), done(value);
	return v;
}
FN(host_remove) {
	ONE(path);
	JSValue v = apply(&(mr_edit){MR_REMOVE, path, MR_NONE});
	done(path);
	return v;
}
FN(host_elements) {
	ONE(path);
	LOOK(1);
	mr_scan s = mr_elements(in, path);
	mr_str item;
	JSValue list = JS_NewArray(c);
	bool ok = !JS_IsException(list);
	for (uint32_t i = 0; ok && mr_next(&s, &item); i++) ok = add(list, i, text(item));
	done(path);
	LOOKED;
	return ok ? list : JS_EXCEPTION;
}
FN(host_attribute) {
	int32_t tag;
	mr_str name;
	if (JS_ToInt32(c, &tag, argv[0]) || !arg(argv[1], &name)) return JS_EXCEPTION;
	JSValue v = text(mr_attribute(event, (uint8_t)tag, name));
	done(name);
	return v;
}
FN(host_extensions) {
	JSValue list = JS_NewArray(c);
	const uint8_t *a = event->rec + mr_u32(event->rec + 40);
	uint32_t n = 0;
	bool ok = !JS_IsException(list);
	for (uint16_t left = mr_u16(event->rec + 4); ok && left; left--) {
		uint32_t klen = mr_u16(a + 2), vlen = mr_u32(a + 4);
		if (a[0] == 0) ok = add(list, n++, text((mr_str){a + 8, klen}));
		a += (8 + klen + vlen + 3) & ~3u;
	}
	return ok ? list : JS_EXCEPTION;
}
FN(host_number) {
	int32_t which;
	if (JS_ToInt32(c, &which, argv[0])) return JS_EXCEPTION;
	switch (which) {
	case 0: return JS_NewInt64(c, mr_attempt(event));
	case 1: return JS_NewInt64(c, (int64_t)mr_offset(event));
	case 2: return JS_NewInt64(c, mr_partition(event));
	case 3: return JS_NewInt64(c, mr_hops(event));
	case 4: return JS_NewInt64(c, mr_received(event) / 1000000);
	case 5: return JS_NewInt64(c, mr_reply_wanted(event));
	default: return JS_NewInt64(c, mr_binary(event));
	}
}

// raw is an argument as bytes: text, or a buffer or a view of one. text says which of both to free.
static bool raw(JSValueConst v, mr_str *s, bool *is_text) {
	*is_text = JS_IsString(v);
	if (*is_text) return arg(v, s);
	size_t n, at = 0, len = 0, width;
	uint8_t *p = 0;
	JSValue b = JS_GetTypedArrayBuffer(ctx, v, &at, &len, &width);
	if (!JS_IsException(b)) {
		if ((p = JS_GetArrayBuffer(ctx, &n, b))) p += at;
		JS_FreeValue(ctx, b); // the view holds it
	} else {
		JS_FreeValue(ctx, JS_GetException(ctx));
		p = JS_GetArrayBuffer(ctx, &len, v);
	}
	*s = (mr_str){p, len};
	return p || !len;
}

FN(host_result) { // kind, flags, arg, data, attributes
	int32_t kind, flags;
	int64_t number;
	uint32_t count = 0;
	JSValue n = JS_GetPropertyStr(c, argv[4], "length");
	if (JS_ToInt32(c, &kind, argv[0]) || JS_ToInt32(c, &flags, argv[1]) || JS_ToInt64(c, &number, argv[2]) || JS_ToUint32(c, &count, n)) return JS_EXCEPTION;
	if (count > 256) return JS_ThrowRangeError(c, "%u attributes; at most 256 are allowed", count);
	mr_attr attrs[256];
	bool ok = true, is_text = false;
	uint32_t i = 0;
	for (; i < count && ok; i++) {
		JSValue a = JS_GetPropertyUint32(c, argv[4], i), tag = JS_GetPropertyUint32(c, a, 0), name = JS_GetPropertyUint32(c, a, 1), v = JS_GetPropertyUint32(c, a, 2);
		int32_t t = 0;
		attrs[i] = (mr_attr){.unset = JS_IsUndefined(v)};
		ok = !JS_ToInt32(c, &t, tag) && arg(name, &attrs[i].name) && (attrs[i].unset || arg(v, &attrs[i].value));
		attrs[i].tag = (uint8_t)t;
		JS_FreeValue(c, a), JS_FreeValue(c, name), JS_FreeValue(c, v);
	}
	mr_str body = MR_NONE;
	if (ok && JS_IsBool(argv[3])) body = data();
	else if (ok && !JS_IsUndefined(argv[3])) ok = raw(argv[3], &body, &is_text);
	if (ok) {
		if (!body.p && !JS_IsUndefined(argv[3])) body = MR("");
		mr_result(results, (uint8_t)kind, (uint8_t)flags, (uint32_t)number, body, attrs, count);
	}
	if (is_text && body.p) done(body);
	while (i--) {
		done(attrs[i].name);
		if (attrs[i].value.p) done(attrs[i].value);
	}
	return ok ? JS_UNDEFINED : JS_EXCEPTION;
}

FN(host_log) {
	int32_t level;
	mr_str s;
	if (JS_ToInt32(c, &level, argv[0]) || !arg(argv[1], &s)) return JS_EXCEPTION;
	mr_log(level, s);
	done(s);
	return JS_UNDEFINED;
}
FN(host_random) {
	uint64_t v;
	mr_random(&v, sizeof v);
	return JS_NewFloat64(c, (double)(v >> 11) * 0x1p-53);
}
FN(host_clock) { return JS_NewInt64(c, mr_clock() / 1000000); }

static JSValue asked(int64_t (*get)(mr_str, mr_buf *), const char *what, JSValueConst key, JSValue (*as)(mr_str)) {
	mr_str k;
	if (!arg(key, &k)) return JS_EXCEPTION;
	mr_buf b = {0};
	int64_t n = get(k, &b);
	done(k);
	JSValue v = n >= 0 ? as(b.p ? mr_view(&b) : MR("")) : n == MR_NOT_FOUND ? JS_UNDEFINED : refused(what, n);
	mr_free(b.p, b.room);
	return v;
}
FN(host_config) { return asked(mr_config, "config", argv[0], text); }
FN(host_secret) { return asked(mr_secret, "secret", argv[0], text); }
FN(host_kv_get) { return asked(mr_kv_get, "kv.get", argv[0], text); }
FN(host_kv_bytes) { return asked(mr_kv_get, "kv.bytes", argv[0], bytes); }
FN(host_kv_put) {
	ONE(k);
	mr_str v;
	bool is_text;
	int64_t ttl;
	if (!raw(argv[1], &v, &is_text) || JS_ToInt64(c, &ttl, argv[2])) return JS_EXCEPTION;
	int e = mr_kv_put(k, v.p ? v : MR(""), ttl);
	done(k);
	if (is_text) done(v);
	return e ? refused("kv.put", e) : JS_UNDEFINED;
}
FN(host_kv_delete) {
	ONE(k);
	int e = mr_kv_delete(k);
	done(k);
	return e && e != MR_NOT_FOUND ? refused("kv.delete", e) : JS_NewBool(c, e == 0);
}
FN(host_kv_add) {
	ONE(k);
	int64_t delta, sum;
	if (JS_ToInt64(c, &delta, argv[1])) return JS_EXCEPTION;
	int e = mr_kv_add(k, delta, &sum);
	done(k);
	return e ? refused("kv.add", e) : JS_NewInt64(c, sum);
}
FN(host_count) {
	ONE(name);
	int64_t delta;
	if (JS_ToInt64(c, &delta, argv[1])) return JS_EXCEPTION;
	mr_count(name, delta);
	done(name);
	return JS_UNDEFINED;
}
FN(host_http_call) { // method, url, headers, body, timeout
	mr_request r = {0};
	bool is_text;
	if (!arg(argv[0], &r.method) || !arg(argv[1], &r.url) || !arg(argv[2], &r.headers) || !raw(argv[3], &r.body, &is_text) || JS_ToUint32(c, &r.timeout_ms, argv[4])) return JS_EXCEPTION;
	mr_buf b = {0};
	mr_response a;
	int e = mr_http(&r, &a, &b);
	done(r.method), done(r.url), done(r.headers);
	if (is_text) done(r.body);
	JSValue v = JS_UNDEFINED;
	if (e) {
		v = refused("http", e);
	} else {
		v = JS_NewArray(c);
		if (JS_IsException(v) || !add(v, 0, JS_NewInt32(c, a.status)) || !add(v, 1, text(a.headers.p ? a.headers : MR(""))) || !add(v, 2, bytes(a.body.p ? a.body : MR("")))) v = JS_EXCEPTION;
	}
	mr_free(b.p, b.room);
	return v;
}
FN(host_encode) {
	ONE(s);
	JSValue v = bytes(s.p ? s : MR(""));
	done(s);
	return v;
}
FN(host_copy) {
	mr_str s;
	bool is_text;
	if (!raw(argv[0], &s, &is_text)) return JS_EXCEPTION;
	JSValue v = bytes(s.p ? s : MR(""));
	if (is_text) done(s);
	return v;
}
FN(host_decode) { // bytes, whether they must be UTF-8
	mr_str s, again;
	bool is_text;
	if (!raw(argv[0], &s, &is_text)) return JS_EXCEPTION;
	JSValue v = JS_NewStringLen(c, (const char *)s.p, s.n);
	if (!JS_IsException(v) && JS_ToBool(c, argv[1])) {
		bool same = arg(v, &again) && again.n == s.n && !memcmp(again.p, s.p, s.n);
		if (again.p) done(again);
		if (!same) {
			JS_FreeValue(c, v);
			v = JS_ThrowTypeError(c, "the bytes are not UTF-8");
		}
	}
	if (is_text) done(s);
	return v;
}

static const JSCFunctionListEntry host_functions[] = {
	JS_CFUNC_DEF("text", 0, host_text), JS_CFUNC_DEF("bytes", 0, host_bytes), JS_CFUNC_DEF("get", 1, host_get),
	JS_CFUNC_DEF("has", 1, host_has), JS_CFUNC_DEF("set", 2, host_set), JS_CFUNC_DEF("remove", 1, host_remove),
	JS_CFUNC_DEF("elements", 1, host_elements), JS_CFUNC_DEF("isObject", 0, host_is_object), JS_CFUNC_DEF("edited", 0, host_edited),
	JS_CFUNC_DEF("attribute", 2, host_attribute), JS_CFUNC_DEF("extensions", 0, host_extensions), JS_CFUNC_DEF("number", 1, host_number),
	JS_CFUNC_DEF("result", 5, host_result), JS_CFUNC_DEF("log", 2, host_log), JS_CFUNC_DEF("random", 0, host_random),
	JS_CFUNC_DEF("clock", 0, host_clock), JS_CFUNC_DEF("config", 1, host_config), JS_CFUNC_DEF("secret", 1, host_secret),
	JS_CFUNC_DEF("kvGet", 1, host_kv_get), JS_CFUNC_DEF("kvPut", 3, host_kv_put), JS_CFUNC_DEF("kvDelete", 1, host_kv_delete),
	JS_CFUNC_DEF("kvAdd", 2, host_kv_add), JS_CFUNC_DEF("count", 2, host_count), JS_CFUNC_DEF("http", 5, host_http_call),
	JS_CFUNC_DEF("kvBytes", 1, host_kv_bytes), JS_CFUNC_DEF("encode", 1, host_encode), JS_CFUNC_DEF("copy", 1, host_copy),
	JS_CFUNC_DEF("decode", 2, host_decode),
};

static JSValue must(JSValue v) {
	if (JS_IsException(v)) die(ctx);
	return v;
}

// jobs runs what promises wait for.
static void jobs(void) {
	JSContext *c;
	int n;
	while ((n = JS_ExecutePendingJob(rt, &c)) > 0);
	if (n < 0) die(c);
}

// unhandled fails what left a promise rejected that nobody looks at.
static void unhandled(void) {
	if (!rejections) return;
	JS_Throw(ctx, rejected[0][1]);
	die(ctx);
}

// load evaluates the function's module and finds its handler.
static void load(char *source, size_t n) {
	JSValue m = must(JS_Eval(ctx, source, n, "function.js", JS_EVAL_TYPE_MODULE | JS_EVAL_FLAG_COMPILE_ONLY));
	JSModuleDef *def = JS_VALUE_GET_PTR(m);
	JSValue ran = must(JS_EvalFunction(ctx, m));
	jobs();
	if (JS_PromiseState(ctx, ran) == JS_PROMISE_REJECTED) {
		JS_Throw(ctx, JS_PromiseResult(ctx, ran));
		die(ctx);
	}
	if (JS_PromiseState(ctx, ran) == JS_PROMISE_PENDING) {
		JS_ThrowTypeError(ctx, "the module waits for a promise that never settles: nothing here could still resolve it");
		die(ctx);
	}
	unhandled();
	JSValue ns = must(JS_GetModuleNamespace(ctx, def));
	handler = JS_GetPropertyStr(ctx, ns, "default");
	if (!JS_IsFunction(ctx, handler)) handler = JS_GetPropertyStr(ctx, ns, "handle");
	if (!JS_IsFunction(ctx, handler)) {
		JS_ThrowTypeError(ctx, "the module exports no handler; want `export default function (event, ctx) { … }`");
		die(ctx);
	}
	JS_FreeValue(ctx, ns);
}

void millrace_start(void) {
	static const JSMallocFunctions memory = {mem_alloc, mem_free, mem_realloc, mem_size};
	rt = JS_NewRuntime2(&memory, 0);
	if (!rt || !(ctx = JS_NewContext(rt))) host_fail(1, "out of memory", 13);
	JS_SetHostPromiseRejectionTracker(rt, on_rejection, 0);
	JS_SetMaxStackSize(rt, 768 << 10); // of the megabyte that the linker gives
	JSValue host = JS_NewObject(ctx), make = must(JS_Eval(ctx, prelude, sizeof prelude - 1, "prelude.js", JS_EVAL_TYPE_GLOBAL));
	JS_SetPropertyFunctionList(ctx, host, host_functions, sizeof host_functions / sizeof *host_functions);
	JSValue both = must(JS_Call(ctx, make, JS_UNDEFINED, 1, &host));
	begin = JS_GetPropertyStr(ctx, both, "begin");
	finish = JS_GetPropertyStr(ctx, both, "finish");
	uint32_t n = (uint32_t)host_source(0, 0);
	char *source = malloc(n + 1);
	if (!source) host_fail(1, "out of memory", 13);
	host_source(source, n);
	source[n] = 0;
	load(source, n);
	free(source);
}

void millrace_event(const mr_event *e, mr_results *out) {
	event = e, results = out, edited = starved = false;
	JS_UpdateStackTop(rt);
	JS_FreeValue(ctx, must(JS_Call(ctx, begin, JS_UNDEFINED, 1, &handler)));
	jobs();
	unhandled();
	JS_FreeValue(ctx, must(JS_Call(ctx, finish, JS_UNDEFINED, 0, 0)));
}
