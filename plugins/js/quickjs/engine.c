// A guest that runs functions written in JavaScript: QuickJS behind the C SDK. The source comes from the router when
// the guest starts; prelude.js is what the source sees. Built by build.sh.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "quickjs.h"

#define MILLRACE_KV
#define MILLRACE_HTTP
#define MILLRACE_SECRETS
#define MILLRACE_OPTIONAL // what the engine could do a function may never use
#include "millrace.h"

__attribute__((import_module("millrace_script"), import_name("source"))) int32_t host_source(void *buf, uint32_t room);
__attribute__((import_module("millrace_script"), import_name("fail"), noreturn)) void host_fail(int32_t memory, const void *p, uint32_t n);

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

// die ends the call with what was thrown: its text and where.
static void die(JSContext *c) {
	JSValue e = JS_GetException(c);
	const char *what = JS_ToCString(c, e);
	mr_buf b = {0};
	bool memory = !what || strstr(what, "out of memory");
	mr_append(&b, what ? view(what, strlen(what)) : MR("out of memory"));
	if (what && JS_IsError(c, e)) {
		JSValue stack = JS_GetPropertyStr(c, e, "stack");
		const char *s = JS_IsString(stack) ? JS_ToCString(c, stack) : 0;
		while (s && *s == ' ') s++;
		if (s && *s) {
			mr_append(&b, MR(" "));
			mr_append(&b, view(s, strlen(s)));
		}
	}
	host_fail(memory, b.p, (uint32_t)b.n);
}

static JSValue text(mr_str s) { return s.p ? JS_NewStringLen(ctx, (const char *)s.p, s.n) : JS_UNDEFINED; }

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
FN(host_is_object) { return JS_NewBool(c, mr_is_object(data())); }
FN(host_bytes) {
	mr_str d = data();
	if (!d.p) return JS_UNDEFINED;
	JSValue b = JS_NewArrayBufferCopy(c, d.p, d.n);
	if (JS_IsException(b)) return b;
	JSValue args[1] = {b}, a = JS_NewTypedArray(c, 1, args, JS_TYPED_ARRAY_UINT8);
	JS_FreeValue(c, b);
	return a;
}
FN(host_get) {
	ONE(path);
	JSValue v = text(mr_get(data(), path));
	done(path);
	return v;
}
FN(host_has) {
	ONE(path);
	JSValue v = JS_NewBool(c, mr_has(data(), path));
	done(path);
	return v;
}

static JSValue apply(const mr_edit *edit) {
	mr_buf *to = &docs[!doc];
	to->n = 0;
	if (mr_apply(to, data(), edit, 1) != MR_OK) return JS_ThrowTypeError(ctx, "the data has no place for this path, or is no JSON");
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
	mr_scan s = mr_elements(data(), path);
	mr_str item;
	JSValue list = JS_NewArray(c);
	for (uint32_t i = 0; mr_next(&s, &item); i++) JS_SetPropertyUint32(c, list, i, text(item));
	done(path);
	return list;
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
	for (uint16_t left = mr_u16(event->rec + 4); left; left--) {
		uint32_t klen = mr_u16(a + 2), vlen = mr_u32(a + 4);
		if (a[0] == 0) JS_SetPropertyUint32(c, list, n++, text((mr_str){a + 8, klen}));
		a += (8 + klen + vlen + 3) & ~3u;
	}
	return list;
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
	mr_str bytes = MR_NONE;
	if (ok && JS_IsBool(argv[3])) bytes = data();
	else if (ok && !JS_IsUndefined(argv[3])) ok = raw(argv[3], &bytes, &is_text);
	if (ok) {
		if (!bytes.p && !JS_IsUndefined(argv[3])) bytes = MR("");
		mr_result(results, (uint8_t)kind, (uint8_t)flags, (uint32_t)number, bytes, attrs, count);
	}
	if (is_text && bytes.p) done(bytes);
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

static JSValue asked(int64_t (*get)(mr_str, mr_buf *), const char *what, JSValueConst key) {
	mr_str k;
	if (!arg(key, &k)) return JS_EXCEPTION;
	mr_buf b = {0};
	int64_t n = get(k, &b);
	done(k);
	JSValue v = n >= 0 ? JS_NewStringLen(ctx, (const char *)b.p, b.n) : n == MR_NOT_FOUND ? JS_UNDEFINED : refused(what, n);
	mr_free(b.p, b.room);
	return v;
}
FN(host_config) { return asked(mr_config, "config", argv[0]); }
FN(host_secret) { return asked(mr_secret, "secret", argv[0]); }
FN(host_kv_get) { return asked(mr_kv_get, "kv.get", argv[0]); }
FN(host_kv_put) {
	ONE(k);
	mr_str v;
	int64_t ttl;
	if (!arg(argv[1], &v) || JS_ToInt64(c, &ttl, argv[2])) return JS_EXCEPTION;
	int e = mr_kv_put(k, v, ttl);
	done(k), done(v);
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
	int32_t timeout;
	if (!arg(argv[0], &r.method) || !arg(argv[1], &r.url) || !arg(argv[2], &r.headers) || !arg(argv[3], &r.body) || JS_ToInt32(c, &timeout, argv[4])) return JS_EXCEPTION;
	r.timeout_ms = (uint32_t)timeout;
	mr_buf b = {0};
	mr_response a;
	int e = mr_http(&r, &a, &b);
	done(r.method), done(r.url), done(r.headers), done(r.body);
	JSValue v = JS_UNDEFINED;
	if (e) {
		v = refused("http", e);
	} else {
		v = JS_NewArray(c);
		JS_SetPropertyUint32(c, v, 0, JS_NewInt32(c, a.status));
		JS_SetPropertyUint32(c, v, 1, text(a.headers.p ? a.headers : MR("")));
		JS_SetPropertyUint32(c, v, 2, JS_NewArrayBufferCopy(c, a.body.p, a.body.n));
	}
	mr_free(b.p, b.room);
	return v;
}
FN(host_decode) {
	size_t n;
	uint8_t *p = JS_GetArrayBuffer(c, &n, argv[0]);
	return p ? JS_NewStringLen(c, (const char *)p, n) : JS_NewString(c, "");
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
	JS_CFUNC_DEF("decode", 1, host_decode),
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
	rt = JS_NewRuntime();
	if (!rt || !(ctx = JS_NewContext(rt))) host_fail(1, "out of memory", 13);
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
	event = e, results = out, edited = false;
	JS_UpdateStackTop(rt);
	JS_FreeValue(ctx, must(JS_Call(ctx, begin, JS_UNDEFINED, 1, &handler)));
	jobs();
	JS_FreeValue(ctx, must(JS_Call(ctx, finish, JS_UNDEFINED, 0, 0)));
}
