// Makes every call of the router that the SDK has and says what came of it, as its siblings do.
#define MILLRACE_KV
#define MILLRACE_HTTP
#define MILLRACE_SECRETS
#define MILLRACE_REPLY
#include "millrace.h"

static mr_buf said, got;

void millrace_start(void) {}

static void say(mr_str name, mr_str value) {
	if (said.n) mr_push(&said, ' ');
	mr_append(&said, name);
	mr_push(&said, '=');
	mr_append(&said, value);
}

static void say_bool(mr_str name, bool yes) { say(name, yes ? MR("true") : MR("false")); }

static void say_int(mr_str name, int64_t n) {
	uint8_t digits[24], *p = digits + 24;
	uint64_t rest = n < 0 ? 0 - (uint64_t)n : (uint64_t)n;
	do *--p = (uint8_t)('0' + rest % 10);
	while (rest /= 10);
	if (n < 0) *--p = '-';
	say(name, (mr_str){p, (size_t)(digits + 24 - p)});
}

// header returns the value of a header among lines, its name in lower case as the router gives it.
static mr_str header(mr_str lines, mr_str name) {
	for (size_t i = 0; i + name.n < lines.n; i++)
		if (mr_eq((mr_str){lines.p + i, name.n}, name)) {
			size_t from = i + name.n, to = from;
			while (to < lines.n && lines.p[to] != '\r') to++;
			return (mr_str){lines.p + from, to - from};
		}
	return MR_NONE;
}

void millrace_event(const mr_event *e, mr_results *out) {
	mr_str data = mr_data(e);
	if (mr_eq(data, MR("later"))) {
		mr_retry(out, 1500);
		return;
	}
	mr_log(MR_WARN, MR("hello"));
	mr_count(MR("seen"), 2);
	uint64_t random = 0;
	mr_random(&random, sizeof random);
	said.n = got.n = 0;
	say_bool(MR("now"), mr_now() == mr_received(e));
	say_bool(MR("random"), random != 0);
	say(MR("was"), mr_kv_get(MR("last"), &got) < 0 ? MR("none") : mr_view(&got));
	mr_kv_put(MR("last"), data, 3600 * 1000);
	mr_kv_put(MR("gone"), MR("x"), 0);
	mr_kv_delete(MR("gone"));
	say_bool(MR("gone"), mr_kv_get(MR("gone"), &got) != MR_NOT_FOUND);
	int64_t sum = 0;
	mr_kv_add(MR("sum"), -3, &sum);
	say_int(MR("sum"), sum);
	say_bool(MR("bad"), mr_kv_add(MR("last"), 1, &sum) == MR_BAD_ARGUMENT);
	got.n = 0;
	mr_secret(MR("token"), &got);
	say(MR("token"), mr_view(&got));
	say_bool(MR("none"), mr_secret(MR("none"), &got) >= 0);
	mr_request ask = {MR("POST"), MR("https://api.example.com/x"), MR("X-A: b\r\n"), MR("ask"), 1500};
	mr_response answer = {0};
	mr_http(&ask, &answer, &got);
	say_int(MR("status"), answer.status);
	say(MR("tag"), header(answer.headers, MR("x-tag: ")));
	say_int(MR("body"), (int64_t)answer.body.n);
	mr_request other = {MR("GET"), MR("https://other.example.com/"), MR_NONE, MR_NONE, 0};
	say_bool(MR("denied"), mr_http(&other, &answer, &got) == MR_DENIED);
	mr_attr attrs[] = {
		{.tag = MR_TOPIC, .value = MR("audit")},
		{.tag = MR_SUBJECT, .value = MR("s")},
		{.tag = MR_EXTENSION, .name = MR("region"), .unset = true},
	};
	mr_relabel(out, attrs, 3);
	mr_replace(out, mr_view(&said), 0, 0);
}
