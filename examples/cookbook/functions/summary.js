// A dead letter in one line, for a chat.
export default function (event) {
	const x = event.extensions;
	return emit({ data: { text: `${event.id} of ${x.deadlettersub} was given up after ${x.deadletterattempts} tries: ${x.deadletterdetail}` } });
}
