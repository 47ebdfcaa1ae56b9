// One event when a value rises above `high`, one when it falls below `low`, nothing in between. The state is per key, which is the device.
export default function (event, ctx) {
	const value = event.get(ctx.config("path"));
	const was = ctx.kv.get(event.key) ?? "low";
	const is = value > Number(ctx.config("high")) ? "high" : value < Number(ctx.config("low")) ? "low" : was;
	if (is === was) return drop();
	ctx.kv.put(event.key, is);
	return emit({ type: is === "high" ? "alarm.raised" : "alarm.cleared", data: { device: event.key, value } });
}
