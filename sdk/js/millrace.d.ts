// What a function in JavaScript sees beside the language. Name this file in a project for completion and checks:
// /// <reference path="millrace.d.ts" />

/**
 * The event at work, until its call is over. Reading `data` decodes it, and what it is then counts; the methods that take
 * a path scan its text and change nothing else in it.
 */
interface MillraceEvent {
	data: any;
	/** The data as text, with the changes of `set` and its like. */
	readonly text: string | undefined;
	readonly bytes: Uint8Array | undefined;
	/** The value at a path such as "customer.email" or "items[0].price"; undefined if there is none. */
	get(path: string): any;
	/** The same as JSON text, as it stands in the data. */
	raw(path: string): string | undefined;
	has(path: string): boolean;
	/** Sets a value; members on the way are made. */
	set(path: string, value: any): void;
	setRaw(path: string, json: string): void;
	/** Sets a value that is there, and says whether it was. */
	replace(path: string, value: any): boolean;
	remove(path: string): void;
	/** The elements of an array as JSON texts. */
	elements(path: string): string[];
	isObject(): boolean;

	id: string;
	source: string;
	type: string;
	subject: string | undefined | null;
	datacontenttype: string | undefined | null;
	dataschema: string | undefined | null;
	topic: string;
	key: string | undefined | null;
	traceparent: string | undefined | null;
	time: string | undefined | null;
	/** An attribute or an extension by its name. */
	attribute(name: string): string | undefined;
	setAttribute(name: string, value: string | number | boolean | Date | null): void;
	readonly extensions: Record<string, string>;

	/** 1 is the first. */
	readonly attempt: number;
	readonly offset: number;
	readonly partition: number;
	readonly hops: number;
	readonly received: Date;
	/** Whether somebody waits for reply(…). */
	readonly replyWanted: boolean;
	readonly binary: boolean;
	/** As CloudEvents in JSON have it. */
	toJSON(): any;
}

/** An event to make. Other members are attributes and extensions; null removes one. At most one of the four of data. */
interface MillraceDescription {
	data?: any;
	raw?: string;
	text?: string;
	bytes?: Uint8Array | ArrayBuffer;
	type?: string;
	topic?: string;
	extensions?: Record<string, string | number | boolean | null>;
	[attribute: string]: any;
}

interface MillraceResponse {
	readonly status: number;
	readonly ok: boolean;
	/** By names in lower case. */
	readonly headers: Record<string, string>;
	readonly bytes: Uint8Array;
	readonly text: string;
	json(): any;
}

interface MillraceContext {
	config(key: string): string | undefined;
	secret(key: string): string | undefined;
	/** Adds to a counter that the router's metrics show. */
	count(name: string, delta?: number): void;
	/** When the event was received, in ms: the same in every attempt. Date.now() is the same. */
	now(): number;
	/** The true time, in ms. */
	clock(): number;
	/** State; needs `allow: {kv: true}`. ttl in ms or as "5m". */
	readonly kv: {
		get(key: string): string | undefined;
		bytes(key: string): Uint8Array | undefined;
		/** Text and bytes as they are, anything else as JSON. */
		put(key: string, value: any, ttl?: number | string): void;
		delete(key: string): boolean;
		add(key: string, delta?: number): number;
	};
	/** Needs the host in `allow: {http: […]}`. It waits for the answer. */
	http(request: string | { url: string; method?: string; headers?: Record<string, string | string[]>; body?: any; timeout?: number | string }): MillraceResponse;
}

/** What a handler returns: the event, one of the functions below, or an array of these. */
interface MillraceResult {
	readonly verdict: "pass" | "emit" | "drop" | "retry" | "reject" | "reply";
}
type MillraceAnswer = MillraceEvent | MillraceResult | (MillraceEvent | MillraceResult)[];
type MillraceHandler = (event: MillraceEvent, ctx: MillraceContext) => MillraceAnswer | Promise<MillraceAnswer>;

/** Delivers the event unchanged. */
declare function pass(): MillraceResult;
/** Is done with the event; nothing is delivered. */
declare function drop(): MillraceResult;
/**
 * Delivers an event with the input's attributes except id and topic, and its data where none is given. Given the event,
 * it delivers that as it has been changed so far.
 */
declare function emit(event: MillraceEvent | MillraceDescription): MillraceResult;
/** Delivers an event of its own; it needs source and type. */
declare function create(event: MillraceDescription): MillraceResult;
/** Asks for another attempt; without a delay by the subscription's schedule. */
declare function retry(delay?: number | string): MillraceResult;
/** Dead-letters the event now. */
declare function reject(code: number, reason?: string): MillraceResult;
/** Answers whoever waits: a text, bytes, or a value as JSON. */
declare function reply(status: number, body?: any, contentType?: string): MillraceResult;
