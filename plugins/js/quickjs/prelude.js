// What a function written in JavaScript sees beside the language. It runs once, before the function's module, and
// leaves nothing behind but the globals below. `host` is what engine.c offers; `globalThis` is the function's.
(function (host) {
	"use strict";
	const { parse, stringify } = JSON, { isArray } = Array;
	const define = Object.defineProperty, keys = Object.keys, isView = ArrayBuffer.isView;
	const PASS = 0, EMIT = 1, DROP = 2, RETRY = 3, REJECT = 4, REPLY = 5;
	const INHERIT = 1, SAME = 2;
	// By tag. The names are those of CloudEvents; topic and key are the router's.
	const names = ["", "id", "source", "type", "subject", "datacontenttype", "dataschema", "topic", "key", "traceparent", "time"];
	const tags = { __proto__: null };
	for (let t = 1; t < names.length; t++) tags[names[t]] = t;
	const own = { __proto__: null, data: 1, raw: 1, text: 1, bytes: 1, extensions: 1 };

	class Result {
		constructor(kind, arg, data, attributes, flags) {
			this.kind = kind;
			this.arg = arg;
			this.data = data;
			this.attributes = attributes;
			this.flags = flags;
			Object.freeze(this);
		}
	}

	// value is what an attribute is given, as text; undefined removes it.
	const value = (name, v) => {
		if (v === null || v === undefined) return undefined;
		if (v instanceof Date) return v.toISOString();
		if (typeof v === "object" || typeof v === "function" || typeof v === "symbol") throw new TypeError(`attribute ${name}: want a string, a number or a boolean`);
		return `${v}`;
	};

	// attribute is [tag, name, text]; names beyond those of CloudEvents are extensions.
	const attribute = (name, v) => {
		const tag = tags[name];
		if (tag !== undefined) return [tag, "", value(name, v)];
		return [0, name, value(name, v)];
	};

	// text is JSON for data of an event.
	const json = (v) => {
		const s = stringify(v);
		if (s === undefined) throw new TypeError("data: a function or a symbol is no JSON");
		return s;
	};

	class Event {
		#parsed;
		#read = false;
		#changed = { __proto__: null };

		get data() {
			if (!this.#read) {
				const text = host.text();
				this.#parsed = text === undefined ? undefined : parse(text);
				this.#read = true;
			}
			return this.#parsed;
		}
		set data(v) {
			this.#parsed = v;
			this.#read = true;
		}
		get text() { return host.text(); }
		get bytes() { return host.bytes(); }
		get(path) {
			if (this.#read) return path.split(".").reduce((v, k) => (v === null || v === undefined ? undefined : v[k]), this.#parsed);
			const raw = host.get(`${path}`);
			return raw === undefined ? undefined : parse(raw);
		}
		raw(path) { return host.get(`${path}`); }
		has(path) { return this.#read ? this.get(path) !== undefined : host.has(`${path}`); }
		set(path, v) { this.setRaw(path, json(v)); }
		setRaw(path, text) {
			if (this.#read) throw new TypeError("set: event.data was read; change it there");
			host.set(`${path}`, `${text}`);
		}
		replace(path, v) {
			if (!this.has(path)) return false;
			this.set(path, v);
			return true;
		}
		remove(path) {
			if (this.#read) throw new TypeError("remove: event.data was read; change it there");
			host.remove(`${path}`);
		}
		elements(path) { return host.elements(`${path}`); }
		isObject() { return host.isObject(); }

		attribute(name) {
			if (name in this.#changed) return this.#changed[name][2];
			const tag = tags[name];
			return tag === undefined ? host.attribute(0, `${name}`) : host.attribute(tag, "");
		}
		setAttribute(name, v) { this.#changed[name] = attribute(`${name}`, v); }
		get extensions() {
			const all = {};
			for (const n of host.extensions()) all[n] = this.attribute(n);
			return all;
		}
		get attempt() { return host.number(0); }
		get offset() { return host.number(1); }
		get partition() { return host.number(2); }
		get hops() { return host.number(3); }
		get received() { return new Date(host.number(4)); }
		get replyWanted() { return host.number(5) === 1; }
		get binary() { return host.number(6) === 1; }

		static result(e) {
			const list = [];
			for (const n of keys(e.#changed)) list.push(e.#changed[n]);
			if (e.#read) return new Result(EMIT, 0, json(e.#parsed), list, INHERIT);
			if (host.edited()) return new Result(EMIT, 0, true, list, INHERIT);
			return list.length ? new Result(EMIT, 0, undefined, list, INHERIT | SAME) : new Result(PASS, 0, undefined, [], 0);
		}
	}
	for (let t = 1; t < names.length; t++) {
		const name = names[t];
		define(Event.prototype, name, { get() { return this.attribute(name); }, set(v) { this.setAttribute(name, v); } });
	}

	const status = (n, low, high, what) => {
		if (!Number.isInteger(n) || n < low || n > high) throw new RangeError(`${what}: ${n}; want a whole number of ${low} to ${high}`);
		return n;
	};

	// body is the data of a plain object that describes an event: data as JSON, or raw JSON, text or bytes.
	const body = (o) => {
		const given = keys(own).filter((k) => k !== "extensions" && o[k] !== undefined);
		if (given.length > 1) throw new TypeError(`emit: ${given.join(" and ")} are given; want one`);
		if (o.bytes !== undefined && !isView(o.bytes) && !(o.bytes instanceof ArrayBuffer)) throw new TypeError("emit: bytes: want a Uint8Array or an ArrayBuffer");
		if (o.data !== undefined) return json(o.data);
		return o.raw !== undefined ? `${o.raw}` : o.text !== undefined ? `${o.text}` : o.bytes;
	};
	const described = (o, flags) => {
		const list = [];
		for (const k of keys(o)) if (!own[k]) list.push(attribute(k, o[k]));
		if (o.extensions) for (const k of keys(o.extensions)) list.push([0, k, value(k, o.extensions[k])]);
		const data = body(o);
		return new Result(EMIT, 0, data, list, data === undefined ? flags & INHERIT && flags | SAME : flags);
	};

	const units = { __proto__: null, ms: 1, s: 1000, m: 60000, h: 3600000, d: 86400000 };
	const milliseconds = (d) => {
		if (d === undefined) return 0;
		const m = typeof d === "string" ? /^(\d+(?:\.\d+)?)(ms|s|m|h|d)$/.exec(d) : null;
		const n = m ? Math.round(m[1] * units[m[2]]) : d;
		if (!Number.isInteger(n) || n < 0 || n > 4294967295) throw new RangeError(`${stringify(d)}: want milliseconds, or a text such as "1500ms", "5s" or "2h"`);
		return n;
	};

	const globals = {
		pass: () => new Result(PASS, 0, undefined, [], 0),
		drop: () => new Result(DROP, 0, undefined, [], 0),
		emit: (o) => {
			if (o instanceof Event) return Event.result(o);
			if (o === null || typeof o !== "object") throw new TypeError("emit: want the event, or an object such as {type: \"t\", data: {}}");
			return described(o, INHERIT);
		},
		create: (o) => described(o, 0),
		retry: (delay) => new Result(RETRY, milliseconds(delay), undefined, [], 0),
		reject: (code, reason) => new Result(REJECT, status(code, 0, 4294967295, "reject"), `${reason ?? ""}`, [], 0),
		reply: (code, content, type) => {
			let data = content;
			if (typeof content !== "string" && content !== undefined && !isView(content) && !(content instanceof ArrayBuffer)) {
				data = json(content);
				type ??= "application/json";
			}
			return new Result(REPLY, status(code, 200, 599, "reply"), data, type || data !== undefined ? [[5, "", type ?? "text/plain; charset=utf-8"]] : [], 0);
		},
	};
	for (const k of keys(globals)) define(globalThis, k, { value: globals[k], writable: true, configurable: true });

	const shown = (v) => (typeof v === "string" ? v : v instanceof Error ? `${v}\n${v.stack ?? ""}` : typeof v === "object" && v !== null ? stringify(v) : String(v));
	const line = (level) => (...args) => host.log(level, args.map(shown).join(" "));
	define(globalThis, "console", { value: { debug: line(0), log: line(1), info: line(1), warn: line(2), error: line(3) }, writable: true, configurable: true });
	define(Math, "random", { value: () => host.random(), writable: true, configurable: true });

	const text = (v) => (typeof v === "string" ? v : json(v));
	const lines = (h) => {
		let s = "";
		for (const k of keys(h ?? {})) for (const v of isArray(h[k]) ? h[k] : [h[k]]) {
			if (/[\r\n]/.test(k + v)) throw new TypeError(`http: header ${stringify(k)} has a line break`);
			s += `${k}: ${v}\r\n`;
		}
		return s;
	};
	const context = Object.freeze({
		config: (k) => host.config(`${k}`),
		secret: (k) => host.secret(`${k}`),
		count: (name, n = 1) => host.count(`${name}`, n),
		now: () => host.number(4),
		clock: () => host.clock(),
		kv: Object.freeze({
			get: (k) => host.kvGet(`${k}`),
			put: (k, v, ttl) => host.kvPut(`${k}`, text(v), milliseconds(ttl)),
			delete: (k) => host.kvDelete(`${k}`),
			add: (k, n = 1) => host.kvAdd(`${k}`, n),
		}),
		http: (r) => {
			if (typeof r === "string") r = { url: r };
			const a = host.http(`${r.method ?? "GET"}`, `${r.url}`, lines(r.headers), r.body === undefined ? "" : text(r.body), milliseconds(r.timeout));
			const headers = {};
			for (const l of a[1].split("\r\n")) {
				const i = l.indexOf(": ");
				if (i > 0) headers[l.slice(0, i)] = l.slice(0, i) in headers ? `${headers[l.slice(0, i)]}, ${l.slice(i + 2)}` : l.slice(i + 2);
			}
			return { status: a[0], ok: a[0] >= 200 && a[0] < 300, headers, bytes: a[2], get text() { return host.decode(a[2]); }, json() { return parse(host.decode(a[2])); } };
		},
	});

	// say hands over what a handler returned; all of it is checked before anything is said.
	const say = (returned) => {
		const list = isArray(returned) ? returned : [returned];
		const results = [];
		for (let i = 0; i < list.length; i++) {
			const v = list[i];
			if (v instanceof Result) results.push(v);
			else if (v instanceof Event) results.push(Event.result(v));
			else throw new TypeError(`the handler returned ${v === null ? "null" : isArray(v) ? "an array in an array" : typeof v}; want pass(), drop(), emit(…), the event, retry(…), reject(…), reply(…) or an array of them: silence is an error`);
		}
		if (!results.length) throw new TypeError("the handler returned an empty array; want drop(): silence is an error");
		for (let i = 0; i < results.length; i++) {
			const r = results[i];
			host.result(r.kind, r.flags, r.arg, r.data, r.attributes);
		}
	};

	let settled, outcome;
	return {
		// begin runs the handler. What it returns is said at once; of a promise, once finish is called.
		begin(handler) {
			settled = 0;
			const returned = handler(new Event(), context);
			if (returned !== null && typeof returned === "object" && typeof returned.then === "function") {
				returned.then((v) => { settled = 1; outcome = v; }, (e) => { settled = 2; outcome = e; });
				return;
			}
			settled = 3;
			say(returned);
		},
		finish() {
			const o = outcome;
			outcome = undefined;
			if (settled === 0) throw new Error("the handler's promise never settles: nothing here could still resolve it");
			if (settled === 2) throw o;
			if (settled === 1) say(o);
		},
	};
})
