// Shows every verdict of a function by what it does to orders: it hides one member of their data, marks them as
// enriched, splits, answers, drops and rejects some. The samples of the other SDKs do the same to the byte.
#define MILLRACE_REPLY
#include "millrace.h"

static mr_buf field; // the path of what to hide
static mr_buf buf;   // serves every event: an instance handles one at a time

void millrace_start(void) {
	mr_buf name = {0};
	if (mr_config(MR("field"), &name) < 0) mr_append(&name, MR("email"));
	mr_name(&field, mr_view(&name));
}

// split delivers an order's items one by one.
static void split(mr_str data, mr_results *out) {
	mr_attr type = {.tag = MR_TYPE, .value = MR("order.item")};
	mr_scan items = mr_elements(data, MR("items"));
	mr_str item;
	bool none = true;
	while (mr_next(&items, &item)) {
		mr_replace(out, item, &type, 1);
		none = false;
	}
	if (none) mr_drop(out);
}

// answer tells the order's total to whoever asks, and lets the order through.
static void answer(mr_str data, mr_results *out) {
	mr_str total = mr_get(data, MR("total"));
	buf.n = 0;
	mr_append(&buf, MR("{\"total\":"));
	mr_append(&buf, total.p ? total : MR("null"));
	mr_push(&buf, '}');
	mr_reply(out, 200, MR("application/json"), mr_view(&buf));
	mr_pass(out);
}

// hide masks the field where there is one and marks the order, in a single pass over its data.
static bool hide(mr_str data, mr_results *out) {
	mr_attr by = {.tag = MR_EXTENSION, .name = MR("enrichedby"), .value = MR("enrich")};
	mr_edit edits[] = {
		{MR_REPLACE_TEXT, mr_view(&field), MR("***")},
		{MR_SET, MR("enriched"), MR("true")},
	};
	buf.n = 0;
	if (mr_apply(&buf, data, edits, 2) != MR_OK) return false; // which is no object: in one neither can fail
	mr_replace(out, mr_view(&buf), &by, 1);
	return true;
}

void millrace_event(const mr_event *e, mr_results *out) {
	mr_str type = mr_type(e), data = mr_data(e);
	bool object = true;
	if (mr_eq(type, MR("order.ignored"))) {
		mr_drop(out);
	} else if (mr_eq(type, MR("order.bad"))) {
		if ((object = mr_is_object(data))) mr_reject(out, 400, MR("bad order"));
	} else if (mr_eq(type, MR("order.split"))) {
		if ((object = mr_is_object(data))) split(data, out);
	} else if (mr_eq(type, MR("order.ask"))) {
		if ((object = mr_is_object(data))) answer(data, out);
	} else {
		object = hide(data, out);
	}
	if (!object) mr_reject(out, 422, MR("data is not a JSON object"));
}
