// What a function written in JavaScript sees beside the language. It runs once, before the function's module, and
// leaves nothing behind but the globals below. `host` is what engine.c offers; `globalThis` is the function's, which may
// do to the language what it likes: what decides an event's fate here uses nothing that it could have changed.
(function (host) {
	"use strict";
	const { parse, stringify } = JSON, { isArray } = Array, { isInteger } = Number, { round } = Math;
	const define = Object.defineProperty, keys = Object.keys, freeze = Object.freeze, isView = ArrayBuffer.isView;
	const of = (f) => Function.prototype.call.bind(f); // a method as a function of its object
	const push = of(Array.prototype.push), wellFormed = of(String.prototype.toWellFormed), toISOString = of(Date.prototype.toISOString), exec = of(RegExp.prototype.exec);
	const PASS = 0, EMIT = 1, DROP = 2, RETRY = 3, REJECT = 4, REPLY = 5;
	const verdicts = ["pass", "emit", "drop", "retry", "reject", "reply"];
	const INHERIT = 1, SAME = 2;
	// By tag. The names are those of CloudEvents; topic and key are the router's.
	const names = ["", "id", "source", "type", "subject", "datacontenttype", "dataschema", "topic", "key", "traceparent", "time"];
	const tags = { __proto__: null };
	for (let t = 1; t < names.length; t++) tags[names[t]] = t;
	const contents = ["data", "raw", "text", "bytes"];
	const own = { __proto__: null, data: 1, raw: 1, text: 1, bytes: 1, extensions: 1 };

	// What these do needs to see inside: a private field cannot be made up by objects that only look like one.
	let isResult, say, isEvent, outcomeOf;

	class Result {
		#kind; #arg; #data; #attributes; #flags;
		constructor(kind, arg, data, attributes, flags) {
			this.#kind = kind;
			this.#arg = arg;
			this.#data = data;
			this.#attributes = attributes;
			this.#flags = flags;
		}
		get verdict() { return verdicts[this.#kind]; }
		static {
			isResult = (v) => #kind in v;
			say = (r) => host.result(r.#kind, r.#flags, r.#arg, r.#data, r.#attributes);
		}
	}

	// value is what an attribute is given, as text; undefined removes it.
	const value = (name, v) => {
		if (v === null || v === undefined) return undefined;
		if (typeof v === "string") return wellFormed(v);
		if (v instanceof Date) return toISOString(v);
		if (typeof v === "object" || typeof v === "function" || typeof v === "symbol") throw new TypeError(`attribute ${name}: want a string, a number or a boolean`);
		return `${v}`;
	};

	// extension and attribute are [tag, name, text]; names beyond those of CloudEvents are extensions.
	const extension = (name, v) => {
		if (exec(/^[a-z0-9]+$/, name) === null) throw new TypeError(`attribute ${stringify(name)}: a name is made of a-z and 0-9`);
		return [0, name, value(name, v)];
	};
	const attribute = (name, v) => {
		const tag = tags[name];
		return tag === undefined ? extension(name, v) : [tag, "", value(name, v)];
	};

	// json is a value as data of an event.
	const json = (v) => {
		const s = stringify(v);
		if (s === undefined) throw new TypeError("data: undefined, a function or a symbol is no JSON");
		return s;
	};

	// The event at work. Others are over: what the host has is not theirs any more.
	let current;
	const over = () => { throw new TypeError("this event is over: keep what you need of an event, not the event"); };

	class Event {
		#parsed;
		#read = false;
		#changed = { __proto__: null };

		get data() {
			if (!this.#read) {
				if (this !== current) over();
				const text = host.text();
				try {
					this.#parsed = text === undefined ? undefined : parse(text);
				} catch (e) {
					throw new SyntaxError(`event.data: ${e.message}`);
				}
				this.#read = true;
			}
			return this.#parsed;
		}
		set data(v) {
			if (this !== current) over();
			this.#parsed = v;
			this.#read = true;
		}
		get text() { if (this !== current) over(); return host.text(); }
		get bytes() { if (this !== current) over(); return host.bytes(); }
		get(path) {
			const raw = this.raw(path);
			return raw === undefined ? undefined : parse(raw);
		}
		raw(path) {
			if (this !== current) over();
			return this.#read ? host.get(path, stringify(this.#parsed) ?? "") : host.get(path);
		}
		has(path) {
			if (this !== current) over();
			return this.#read ? host.has(path, stringify(this.#parsed) ?? "") : host.has(path);
		}
		set(path, v) { this.setRaw(path, json(v)); }
		setRaw(path, text) {
			if (this !== current) over();
			if (this.#read) throw new TypeError("set: event.data was read; change it there");
			host.set(path, text);
		}
		replace(path, v) {
			if (!this.has(path)) return false;
			this.set(path, v);
			return true;
		}
		remove(path) {
			if (this !== current) over();
			if (this.#read) throw new TypeError("remove: event.data was read; change it there");
			host.remove(path);
		}
		elements(path) {
			if (this !== current) over();
			return this.#read ? host.elements(path, stringify(this.#parsed) ?? "") : host.elements(path);
		}
		isObject() {
			if (this !== current) over();
			return this.#read ? host.isObject(stringify(this.#parsed) ?? "") : host.isObject();
		}

		attribute(name) {
			if (this !== current) over();
			const changed = this.#changed[name];
			if (changed !== undefined) return changed[2];
			const tag = tags[name];
			return tag === undefined ? host.attribute(0, name) : host.attribute(tag, "");
		}
		setAttribute(name, v) {
			if (this !== current) over();
			this.#changed[name] = attribute(`${name}`, v);
		}
		get extensions() {
			if (this !== current) over();
			const all = {}, had = host.extensions(), changed = keys(this.#changed);
			for (let i = 0; i < had.length; i++) if (this.#changed[had[i]] === undefined) all[had[i]] = host.attribute(0, had[i]);
			for (let i = 0; i < changed.length; i++) {
				const c = this.#changed[changed[i]];
				if (c[0] === 0 && c[2] !== undefined) all[c[1]] = c[2];
			}
			return all;
		}
		get attempt() { if (this !== current) over(); return host.number(0); }
		get offset() { if (this !== current) over(); return host.number(1); }
		get partition() { if (this !== current) over(); return host.number(2); }
		get hops() { if (this !== current) over(); return host.number(3); }
		get received() { if (this !== current) over(); return new Date(host.number(4)); }
		get replyWanted() { if (this !== current) over(); return host.number(5) === 1; }
		get binary() { if (this !== current) over(); return host.number(6) === 1; }

		// As CloudEvents in JSON have it: what console.log shows.
		toJSON() {
			const all = {};
			for (let t = 1; t < names.length; t++) all[names[t]] = this.attribute(names[t]);
			const more = this.extensions, list = keys(more);
			for (let i = 0; i < list.length; i++) all[list[i]] = more[list[i]];
			try {
				all.data = this.#read ? this.#parsed : parse(host.text() ?? "null");
			} catch {
				all.data = host.text();
			}
			return all;
		}

		static {
			isEvent = (v) => #changed in v;
			// outcomeOf is what becomes of the event with what was changed in it so far; where it is returned itself,
			// nothing can change it any more.
			outcomeOf = (e, returned) => {
				if (e !== current) over();
				const list = [], changed = keys(e.#changed);
				for (let i = 0; i < changed.length; i++) push(list, e.#changed[changed[i]]);
				if (e.#read) {
					// Data that was only looked at stays as it is, to the byte.
					const was = host.text(), is = stringify(e.#parsed);
					if (is === undefined && was !== undefined) return new Result(EMIT, 0, "", list, INHERIT);
					if (is !== was && (was === undefined || is !== again(was))) return new Result(EMIT, 0, is, list, INHERIT);
				}
				if (host.edited()) return new Result(EMIT, 0, returned ? true : host.bytes(), list, INHERIT);
				return returned && !list.length ? new Result(PASS, 0, undefined, [], 0) : new Result(EMIT, 0, undefined, list, INHERIT | SAME);
			};
		}
	}
	const again = (text) => {
		try {
			return stringify(parse(text));
		} catch {
			return undefined; // it was no JSON: what it is now was given to it
		}
	};
	for (let t = 1; t < names.length; t++) {
		const name = names[t];
		define(Event.prototype, name, { get() { return this.attribute(name); }, set(v) { this.setAttribute(name, v); } });
	}

	const status = (n, low, high, what) => {
		if (!isInteger(n) || n < low || n > high) throw new RangeError(`${what}: ${n}; want a whole number of ${low} to ${high}`);
		return n;
	};
	const isBytes = (v) => isView(v) || v instanceof ArrayBuffer;

	// body is the data of a plain object that describes an event: data as JSON, or raw JSON, text or bytes. Bytes are
	// copied: their buffer may be used for the next.
	const body = (o) => {
		let given;
		for (let i = 0; i < contents.length; i++) {
			if (o[contents[i]] === undefined) continue;
			if (given !== undefined) throw new TypeError(`emit: ${given} and ${contents[i]} are given; want one`);
			given = contents[i];
		}
		switch (given) {
		case "data": return json(o.data);
		case "raw": return `${o.raw}`;
		case "text": return wellFormed(`${o.text}`);
		case "bytes":
			if (!isBytes(o.bytes)) throw new TypeError("emit: bytes: want a Uint8Array or an ArrayBuffer");
			return host.copy(o.bytes);
		}
	};
	const described = (o, flags) => {
		if (o === null || typeof o !== "object") throw new TypeError("emit: want the event, or an object such as {type: \"t\", data: {}}");
		const list = [], given = keys(o);
		for (let i = 0; i < given.length; i++) if (own[given[i]] === undefined) push(list, attribute(given[i], o[given[i]]));
		if (o.extensions !== undefined && o.extensions !== null) {
			const more = keys(o.extensions);
			for (let i = 0; i < more.length; i++) push(list, extension(more[i], o.extensions[more[i]]));
		}
		const data = body(o);
		return new Result(EMIT, 0, data, list, data === undefined ? flags & INHERIT && flags | SAME : flags);
	};

	const units = { __proto__: null, ms: 1, s: 1000, m: 60000, h: 3600000, d: 86400000 };
	const milliseconds = (d) => {
		if (d === undefined) return 0;
		const m = typeof d === "string" ? exec(/^(\d+(?:\.\d+)?)(ms|s|m|h|d)$/, d) : null;
		const n = m !== null ? round(m[1] * units[m[2]]) : d;
		if (!isInteger(n) || n < 0 || n > 4294967295) throw new RangeError(`${stringify(d)}: want milliseconds, or a text such as "1500ms", "5s" or "2h"`);
		return n;
	};

	const globals = {
		pass: () => new Result(PASS, 0, undefined, [], 0),
		drop: () => new Result(DROP, 0, undefined, [], 0),
		emit: (o) => o !== null && typeof o === "object" && isEvent(o) ? outcomeOf(o, false) : described(o, INHERIT),
		create: (o) => described(o, 0),
		retry: (delay) => new Result(RETRY, milliseconds(delay), undefined, [], 0),
		reject: (code, reason) => new Result(REJECT, status(code, 0, 4294967295, "reject"), wellFormed(`${reason ?? ""}`), [], 0),
		reply: (code, content, type) => {
			let data = content;
			if (isBytes(content)) data = host.copy(content);
			else if (typeof content === "string") data = wellFormed(content);
			else if (content !== undefined) {
				data = json(content);
				type ??= "application/json";
			}
			const list = type !== undefined || data !== undefined ? [[5, "", `${type ?? "text/plain; charset=utf-8"}`]] : [];
			return new Result(REPLY, status(code, 200, 599, "reply"), data, list, 0);
		},
	};
	const expose = (on, name, v) => define(on, name, { value: v, writable: true, configurable: true });
	for (const k of keys(globals)) expose(globalThis, k, globals[k]);

	const shown = (v) => {
		if (typeof v === "string") return v;
		if (v instanceof Error) return `${v}\n${v.stack ?? ""}`;
		if (typeof v !== "object" || v === null) return String(v);
		try {
			return stringify(v) ?? String(v);
		} catch {
			return String(v); // in circles, or with a BigInt: a line of the log is not worth the event
		}
	};
	const line = (level) => (...args) => host.log(level, args.map(shown).join(" "));
	expose(globalThis, "console", { debug: line(0), log: line(1), info: line(1), warn: line(2), error: line(3) });
	expose(Math, "random", () => host.random());

	// What bundles expect of any runtime.
	expose(globalThis, "TextEncoder", class TextEncoder {
		get encoding() { return "utf-8"; }
		encode(s = "") { return host.encode(wellFormed(`${s}`)); }
	});
	expose(globalThis, "TextDecoder", class TextDecoder {
		#fatal; #bom;
		constructor(label = "utf-8", { fatal = false, ignoreBOM = false } = {}) {
			if (!/^(utf-?8|unicode-1-1-utf-8)$/i.test(`${label}`.trim())) throw new RangeError(`TextDecoder: ${label}; only utf-8 is here`);
			this.#fatal = !!fatal;
			this.#bom = !!ignoreBOM;
		}
		get encoding() { return "utf-8"; }
		get fatal() { return this.#fatal; }
		get ignoreBOM() { return this.#bom; }
		decode(v) {
			if (v === undefined) return "";
			if (v instanceof DataView) v = new Uint8Array(v.buffer, v.byteOffset, v.byteLength);
			const s = host.decode(v, this.#fatal);
			return !this.#bom && s.charCodeAt(0) === 0xfeff ? s.slice(1) : s;
		}
	});
	const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", places = { __proto__: null };
	for (let i = 0; i < 64; i++) places[digits[i]] = i;
	expose(globalThis, "btoa", (v) => {
		const s = `${v}`;
		let out = "";
		for (let i = 0; i < s.length; i += 3) {
			const a = s.charCodeAt(i), b = i + 1 < s.length ? s.charCodeAt(i + 1) : 0, c = i + 2 < s.length ? s.charCodeAt(i + 2) : 0;
			if ((a | b | c) > 255) throw new RangeError("btoa: a character is beyond U+00FF; encode the text first");
			out += digits[a >> 2] + digits[(a & 3) << 4 | b >> 4] + (i + 1 < s.length ? digits[(b & 15) << 2 | c >> 6] : "=") + (i + 2 < s.length ? digits[c & 63] : "=");
		}
		return out;
	});
	expose(globalThis, "atob", (v) => {
		let s = `${v}`.replace(/[\t\n\f\r ]/g, "");
		if (s.length % 4 === 0) s = s.replace(/==?$/, "");
		let out = "", bits = 0, have = 0;
		for (let i = 0; i < s.length; i++) {
			const d = places[s[i]];
			if (d === undefined || s.length % 4 === 1) throw new RangeError("atob: the text is not base64");
			bits = (bits << 6 | d) & 0xffffff;
			if ((have += 6) >= 8) out += String.fromCharCode(bits >> (have -= 8) & 255);
		}
		return out;
	});

	const content = (v) => (typeof v === "string" ? wellFormed(v) : v instanceof DataView ? host.copy(new Uint8Array(v.buffer, v.byteOffset, v.byteLength)) : isBytes(v) ? v : json(v));
	const lines = (h) => {
		let s = "";
		for (const k of keys(h ?? {})) for (const v of isArray(h[k]) ? h[k] : [h[k]]) {
			if (/[\r\n]/.test(k + v)) throw new TypeError(`http: header ${stringify(k)} has a line break`);
			s += `${k}: ${v}\r\n`;
		}
		return s;
	};
	const context = freeze({
		config: (k) => host.config(k),
		secret: (k) => host.secret(k),
		count: (name, n = 1) => host.count(name, n),
		now: () => host.number(4),
		clock: () => host.clock(),
		kv: freeze({
			get: (k) => host.kvGet(k),
			bytes: (k) => host.kvBytes(k),
			put: (k, v, ttl) => host.kvPut(k, content(v), milliseconds(ttl)),
			delete: (k) => host.kvDelete(k),
			add: (k, n = 1) => host.kvAdd(k, n),
		}),
		http: (r) => {
			if (typeof r === "string") r = { url: r };
			const a = host.http(`${r.method ?? "GET"}`, `${r.url}`, lines(r.headers), r.body === undefined ? "" : content(r.body), milliseconds(r.timeout));
			const headers = { __proto__: null };
			for (const l of a[1].split("\r\n")) {
				const i = l.indexOf(":");
				if (i <= 0) continue;
				const k = l.slice(0, i).toLowerCase(), v = l.slice(i + 1).trim();
				headers[k] = k in headers ? `${headers[k]}, ${v}` : v;
			}
			return { status: a[0], ok: a[0] >= 200 && a[0] < 300, headers, bytes: a[2], get text() { return host.decode(a[2], false); }, json() { return parse(host.decode(a[2], false)); } };
		},
	});

	// deliver hands over what a handler returned. What throws half way ends the call, and nothing of it counts.
	const one = (v) => {
		if (v !== null && typeof v === "object") {
			if (isResult(v)) return say(v);
			if (isEvent(v)) return say(outcomeOf(v, true));
		}
		throw new TypeError(`the handler returned ${v === null ? "null" : isArray(v) ? "an array in an array" : typeof v}; want pass(), drop(), emit(…), the event, retry(…), reject(…), reply(…) or an array of them: silence is an error`);
	};
	const deliver = (returned) => {
		if (!isArray(returned)) return one(returned);
		if (!returned.length) throw new TypeError("the handler returned an empty array; want drop(): silence is an error");
		for (let i = 0; i < returned.length; i++) one(returned[i]);
	};

	const Native = Promise, then = of(Native.prototype.then);
	// promised is the promise for what was returned, also by a library's own; undefined if it is no promise.
	const promised = (v) => {
		if (v === null || typeof v !== "object" || isResult(v) || isEvent(v) || isArray(v)) return undefined;
		if (v instanceof Native) return v;
		return typeof v.then === "function" ? new Native((done) => done(v)) : undefined;
	};
	let settled, outcome;
	return {
		// begin runs the handler. What it returns is said at once; of a promise, once finish is called.
		begin(handler) {
			settled = 0;
			current = new Event();
			const returned = handler(current, context);
			const promise = promised(returned);
			if (promise !== undefined) then(promise, (v) => { settled = 1; outcome = v; }, (e) => { settled = 2; outcome = e; });
			else {
				settled = 3;
				deliver(returned);
			}
		},
		finish() {
			const o = outcome;
			outcome = undefined;
			if (settled === 0) throw new Error("the handler's promise never settles: nothing here could still resolve it");
			if (settled === 2) throw o;
			if (settled === 1) deliver(o);
			current = undefined;
		},
	};
})
