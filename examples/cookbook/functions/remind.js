// Puts a reminder into another topic, to be delivered `after` seconds from when the event came, and lets the event pass.
export default function (event, ctx) {
	const due = new Date(ctx.now() + 1000 * Number(ctx.config("after")));
	return [
		pass(),
		emit({
			topic: ctx.config("to"),
			type: "cart.reminder",
			data: { email: event.get("email"), cart: event.get("cart") },
			extensions: { deliverat: due.toISOString() },
		}),
	];
}
