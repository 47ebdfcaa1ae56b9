// Shows every verdict of a function by what it does to orders: it hides one member of their data, marks them as
// enriched, splits, answers, drops and rejects some. The samples of the other SDKs do the same to the byte.

export default function (event, ctx) {
	if (event.type === "order.ignored") return drop();
	if (!event.isObject()) return reject(422, "data is not a JSON object");
	switch (event.type) {
	case "order.bad":
		return reject(400, "bad order");
	case "order.split": {
		const items = event.elements("items").map((raw) => emit({ type: "order.item", raw }));
		return items.length ? items : drop();
	}
	case "order.ask":
		return [reply(200, `{"total":${event.raw("total") ?? "null"}}`, "application/json"), pass()];
	}
	event.replace((ctx.config("field") ?? "email").replace(/[\\.[\]]/g, "\\$&"), "***");
	event.set("enriched", true);
	event.setAttribute("enrichedby", "enrich");
	return event;
}
