// Runs the scanner for a test: each line is fields in hexadecimal, "op doc path" or "edit doc" and three fields an
// edit; what comes out is a line each, in hexadecimal too, or "-" for nothing.
#include <stdio.h>
#include <string.h>

#include "../millrace_json.h"

static int digit(int c) { return c <= '9' ? c - '0' : c - 'a' + 10; }

// field reads the next field to memory of its own size, so that a sanitizer sees who reads past it.
static bool field(int *end, mr_str *out) {
	mr_buf b = {0};
	int c;
	if (*end == '\n' || *end == EOF) return false;
	while ((c = getchar()) != ' ' && c != '\n' && c != EOF) {
		int low = getchar();
		mr_push(&b, (uint8_t)(digit(c) << 4 | digit(low)));
	}
	*end = c;
	uint8_t *p = malloc(b.n ? b.n : 1);
	if (!p) return false;
	mr_copy(p, b.p, b.n);
	*out = (mr_str){p, b.n};
	free(b.p);
	return true;
}

static void show(mr_str s) {
	if (!s.p) putchar('-');
	for (size_t i = 0; i < s.n; i++) printf("%02x", s.p[i]);
	putchar('\n');
}

static void edit(mr_str doc, int *end) {
	static const char *ops[] = {"set", "settext", "replace", "replacetext", "remove"};
	static const char *errors[] = {"", "!json", "!path", "!edits"};
	mr_edit edits[100];
	size_t n = 0;
	mr_str op;
	while (n < 100 && field(end, &op)) {
		field(end, &edits[n].path);
		field(end, &edits[n].value);
		for (uint8_t k = 0; k < 5; k++)
			if (strlen(ops[k]) == op.n && !memcmp(ops[k], op.p, op.n)) edits[n].op = k;
		n++;
	}
	mr_buf dst = {0};
	mr_append(&dst, MR("kept"));
	int err = mr_apply(&dst, doc, edits, n);
	if (err) mr_append(&dst, (mr_str){(const uint8_t *)errors[err], strlen(errors[err])});
	show((mr_str){dst.p + 4, dst.n - 4});
}

int main(void) {
	for (;;) {
		int end = ' ';
		mr_str op, doc, path = MR_NONE, v = MR_NONE;
		mr_buf b = {0};
		int64_t n;
		bool yes;
		if (!field(&end, &op) || !op.n) return 0;
		field(&end, &doc);
		if (mr_eq(op, MR("edit"))) {
			edit(doc, &end);
			fflush(stdout);
			continue;
		}
		field(&end, &path);
		if (mr_eq(op, MR("get"))) {
			v = mr_get(doc, path);
			if (v.p && !mr_has(doc, path)) return 1;
		} else if (mr_eq(op, MR("string"))) {
			if (!mr_get_string(doc, path, &b, &v)) v = MR_NONE;
		} else if (mr_eq(op, MR("int"))) {
			char text[32];
			if (mr_get_int(doc, path, &n)) {
				v.n = (size_t)snprintf(text, sizeof text, "%lld", (long long)n);
				v.p = (uint8_t *)text;
			}
			show(v);
			fflush(stdout);
			continue;
		} else if (mr_eq(op, MR("bool"))) {
			if (mr_get_bool(doc, path, &yes)) v = yes ? MR("true") : MR("false");
		} else if (mr_eq(op, MR("object"))) {
			v = mr_is_object(doc) ? MR("true") : MR("false");
		} else if (mr_eq(op, MR("elements"))) {
			mr_scan s = mr_elements(doc, path);
			mr_str x;
			mr_reserve(&b, 1);
			while (mr_next(&s, &x)) {
				if (b.n) mr_push(&b, '|');
				mr_append(&b, x);
			}
			v = mr_view(&b);
		} else {
			return 1;
		}
		show(v);
		fflush(stdout);
	}
}
