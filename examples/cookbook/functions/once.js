// Lets the first event of a value of `by` through, and drops those that follow within `window`.
export default function (event, ctx) {
	const key = String(event.get(ctx.config("by")));
	if (ctx.kv.get(key) !== undefined) return drop();
	ctx.kv.put(key, event.id, ctx.config("window"));
	return pass();
}
