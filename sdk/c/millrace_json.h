// Reading and changing JSON by scanning it, for functions of the Millrace event router: decoding a document in
// WASM costs many times as much. C11, no library needed. millrace.h includes it; by itself it builds anywhere.
//
// A path is names joined by points, such as "customer.email" or "items.0.price"; a number steps into an array
// and may be written "items[0].price", a backslash takes the next byte as it is ("a\\.b" is one name; mr_name
// puts them in), and the empty path is the document. Where an object has a name twice, readers see the last, as
// nearly every decoder does, and changes act on all, so that nothing that should be hidden stays behind. A
// document that is no JSON makes them find nothing or return an error; of values that the path passes by they
// look at brackets and quotes only.
#ifndef MILLRACE_JSON_H
#define MILLRACE_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// A view of bytes that somebody else owns. p is NULL where there is nothing.
typedef struct {
	const uint8_t *p;
	size_t n;
} mr_str;

// MR("text") is the view of a literal.
#define MR(literal) ((mr_str){(const uint8_t *)(literal), sizeof(literal) - 1})
#define MR_NONE ((mr_str){0, 0})

// Bytes that grow. {0} is empty. Reuse it from event to event: set n to 0. Running out of memory traps, which
// fails the event at work alone.
typedef struct {
	uint8_t *p;
	size_t n, room;
} mr_buf;

static inline mr_str mr_view(const mr_buf *b) { return (mr_str){b->p, b->n}; }

static inline bool mr_eq(mr_str a, mr_str b) {
	if (a.n != b.n) return false;
	for (size_t i = 0; i < a.n; i++)
		if (a.p[i] != b.p[i]) return false;
	return true;
}

// ---- memory ----

#if defined(__wasm__) && !defined(__wasi__)
// Without a C library: blocks of powers of two, kept by size once they are given back.
extern uint8_t __heap_base;
static uint8_t *mr_heap;
static void *mr_freed[32];

static inline void *mr_alloc(size_t n) {
	int class = 5;
	while (class < 31 && ((size_t)1 << class) < n) class++;
	if (((size_t)1 << class) < n) return 0;
	if (mr_freed[class]) {
		void *p = mr_freed[class];
		mr_freed[class] = *(void **)p;
		return p;
	}
	if (!mr_heap) mr_heap = (uint8_t *)(((uintptr_t)&__heap_base + 15) & ~(uintptr_t)15);
	uint64_t end = (uint64_t)(uintptr_t)mr_heap + ((uint64_t)1 << class), have = (uint64_t)__builtin_wasm_memory_size(0) << 16;
	if (end > UINT32_MAX) return 0;
	if (end > have && __builtin_wasm_memory_grow(0, (size_t)((end - have + 65535) >> 16)) == (size_t)-1) return 0;
	void *p = mr_heap;
	mr_heap = (uint8_t *)(uintptr_t)end;
	return p;
}

static inline void mr_free(void *p, size_t n) {
	if (!p) return;
	int class = 5;
	while (((size_t)1 << class) < n) class++;
	*(void **)p = mr_freed[class];
	mr_freed[class] = p;
}
#else
#include <stdlib.h>
static inline void *mr_alloc(size_t n) { return malloc(n); }
static inline void mr_free(void *p, size_t n) {
	(void)n;
	free(p);
}
#endif

static inline void mr_copy(void *to, const void *from, size_t n) {
	if (n) __builtin_memcpy(to, from, n);
}

// mr_reserve makes room for n more bytes and returns where they go.
static inline uint8_t *mr_reserve(mr_buf *b, size_t n) {
	if (n > b->room - b->n) {
		size_t room = b->room ? b->room : 1024;
		while (room - b->n < n) {
			if (room > SIZE_MAX / 2) __builtin_trap();
			room *= 2;
		}
		uint8_t *p = (uint8_t *)mr_alloc(room);
		if (!p) __builtin_trap();
		mr_copy(p, b->p, b->n);
		mr_free(b->p, b->room);
		b->p = p;
		b->room = room;
	}
	return b->p + b->n;
}

static inline void mr_append(mr_buf *b, mr_str s) {
	mr_copy(mr_reserve(b, s.n), s.p, s.n);
	b->n += s.n;
}

static inline void mr_push(mr_buf *b, uint8_t c) {
	*mr_reserve(b, 1) = c;
	b->n++;
}

// ---- scanning. An end of 0 means that there is none: no value ends where a document begins. ----

static inline uint64_t mr_word(const uint8_t *p) {
	uint64_t w;
	__builtin_memcpy(&w, p, 8);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
	w = __builtin_bswap64(w);
#endif
	return w;
}

#define MR_EACH 0x0101010101010101ull

// mr_marks sets the high bit of each byte of w that is zero, and perhaps of some after the first.
static inline uint64_t mr_marks(uint64_t w) { return (w - MR_EACH) & ~w & (MR_EACH << 7); }

static inline size_t mr_space(mr_str d, size_t at) {
	while (at < d.n && (d.p[at] == ' ' || d.p[at] == '\n' || d.p[at] == '\t' || d.p[at] == '\r')) at++;
	return at;
}

// mr_quoted returns the end of the string that begins at at.
static inline size_t mr_quoted(mr_str d, size_t at, bool *escaped) {
	*escaped = false;
	at++;
	while (at < d.n) {
		if (d.n - at >= 8) {
			uint64_t w = mr_word(d.p + at), m = mr_marks(w ^ MR_EACH * '"') | mr_marks(w ^ MR_EACH * '\\');
			if (!m) {
				at += 8;
				continue;
			}
			at += (size_t)__builtin_ctzll(m) >> 3;
		}
		if (d.p[at] == '"') return at + 1;
		if (d.p[at] == '\\') {
			*escaped = true;
			at++;
		}
		at++;
	}
	return 0;
}

// mr_skip_nested returns the end of the object or array that begins at at. It counts brackets, and depth costs
// nothing.
static inline size_t mr_skip_nested(mr_str d, size_t at) {
	size_t depth = 0;
	bool escaped;
	while (at < d.n) {
		if (d.n - at >= 8) {
			// With two bits masked all four brackets are 'y', and so are bytes that no JSON has outside of strings.
			uint64_t w = mr_word(d.p + at);
			uint64_t m = mr_marks(w ^ MR_EACH * '"') | mr_marks(((w | MR_EACH * 0x20) & ~(MR_EACH * 6)) ^ MR_EACH * 'y');
			if (!m) {
				at += 8;
				continue;
			}
			at += (size_t)__builtin_ctzll(m) >> 3;
		}
		switch (d.p[at]) {
		case '"':
			at = mr_quoted(d, at, &escaped);
			if (!at) return 0;
			continue;
		case '{': case '[':
			depth++;
			break;
		case '}': case ']':
			if (--depth == 0) return at + 1;
			break;
		}
		at++;
	}
	return 0;
}

static inline bool mr_digit(mr_str d, size_t at) { return at < d.n && d.p[at] >= '0' && d.p[at] <= '9'; }

static inline size_t mr_digits(mr_str d, size_t at) {
	if (!mr_digit(d, at)) return 0;
	while (mr_digit(d, at)) at++;
	return at;
}

static inline size_t mr_number(mr_str d, size_t at) {
	if (d.p[at] == '-') at++;
	size_t whole = at;
	if (!(at = mr_digits(d, at)) || (d.p[whole] == '0' && at > whole + 1)) return 0;
	if (at < d.n && d.p[at] == '.' && !(at = mr_digits(d, at + 1))) return 0;
	if (at < d.n && (d.p[at] | 0x20) == 'e') {
		at++;
		if (at < d.n && (d.p[at] == '+' || d.p[at] == '-')) at++;
		at = mr_digits(d, at);
	}
	return at;
}

static inline size_t mr_literal(mr_str d, size_t at, mr_str word) {
	return d.n - at >= word.n && mr_eq((mr_str){d.p + at, word.n}, word) ? at + word.n : 0;
}

// mr_skip returns the end of the value that begins at at.
static inline size_t mr_skip(mr_str d, size_t at) {
	bool escaped;
	if (at >= d.n) return 0;
	switch (d.p[at]) {
	case '"': return mr_quoted(d, at, &escaped);
	case '{': case '[': return mr_skip_nested(d, at);
	case 't': return mr_literal(d, at, MR("true"));
	case 'f': return mr_literal(d, at, MR("false"));
	case 'n': return mr_literal(d, at, MR("null"));
	}
	return d.p[at] == '-' || mr_digit(d, at) ? mr_number(d, at) : 0;
}

// ---- names ----

// A name of a path: as it stands there, and whether it has backslashes.
typedef struct {
	mr_str raw;
	bool escaped;
} mr_seg;

// mr_bracketed returns where the "[12]" ends that begins at i, 0 if that is something else.
static inline size_t mr_bracketed(mr_str path, size_t i) {
	if (i >= path.n || path.p[i] != '[') return 0;
	size_t end = mr_digits(path, i + 1);
	if (!end || end == path.n || path.p[end] != ']') return 0;
	end++;
	return end == path.n || path.p[end] == '.' || path.p[end] == '[' ? end : 0;
}

// mr_cut cuts a path's first name off. It returns whether another follows, which may be empty.
static inline bool mr_cut(mr_str *path, mr_seg *seg) {
	mr_str all = *path;
	size_t i = mr_bracketed(all, 0), next;
	*seg = (mr_seg){{all.p, 0}, false};
	if (i) {
		seg->raw = (mr_str){all.p + 1, i - 2};
	} else {
		for (; i < all.n && all.p[i] != '.' && !(i && mr_bracketed(all, i)); i++)
			if (all.p[i] == '\\' && i + 1 < all.n) {
				seg->escaped = true;
				i++;
			}
		seg->raw.n = i;
	}
	next = i < all.n && all.p[i] == '.' ? i + 1 : i;
	*path = (mr_str){all.p + next, all.n - next};
	return i < all.n;
}

// mr_seg_at returns the byte of a name at *i, and moves on. The caller looks for the end.
static inline uint8_t mr_seg_at(const mr_seg *s, size_t *i) {
	if (s->escaped && s->raw.p[*i] == '\\' && *i + 1 < s->raw.n) (*i)++;
	return s->raw.p[(*i)++];
}

static inline int32_t mr_hex4(mr_str b, size_t at) {
	int32_t n = 0;
	if (at > b.n || b.n - at < 4) return -1;
	for (size_t i = at; i < at + 4; i++) {
		uint8_t c = b.p[i], l = c | 0x20;
		if (c >= '0' && c <= '9') n = n << 4 | (c - '0');
		else if (l >= 'a' && l <= 'f') n = n << 4 | (l - 'a' + 10);
		else return -1;
	}
	return n;
}

static inline size_t mr_utf8(uint32_t r, uint8_t out[4]) {
	if (r < 0x80) {
		out[0] = (uint8_t)r;
		return 1;
	}
	size_t n = r < 0x800 ? 2 : r < 0x10000 ? 3 : 4;
	for (size_t i = n - 1; i > 0; i--, r >>= 6) out[i] = (uint8_t)(0x80 | (r & 0x3f));
	out[0] = (uint8_t)((n == 2 ? 0xc0 : n == 3 ? 0xe0 : 0xf0) | r);
	return n;
}

// mr_unescape reads one byte or escape of a string's inside at *i and returns how many bytes it means.
static inline size_t mr_unescape(mr_str b, size_t *i, uint8_t out[4]) {
	uint8_t c = b.p[(*i)++];
	out[0] = c;
	if (c != '\\' || *i >= b.n) return 1;
	switch (c = b.p[(*i)++]) {
	case 'b': out[0] = '\b'; return 1;
	case 'f': out[0] = '\f'; return 1;
	case 'n': out[0] = '\n'; return 1;
	case 'r': out[0] = '\r'; return 1;
	case 't': out[0] = '\t'; return 1;
	case 'u': break;
	default: out[0] = c; return 1;
	}
	int32_t r = mr_hex4(b, *i);
	*i = b.n - *i < 4 ? b.n : *i + 4;
	if (r >= 0xd800 && r < 0xdc00 && b.n - *i >= 6 && b.p[*i] == '\\' && b.p[*i + 1] == 'u') {
		int32_t low = mr_hex4(b, *i + 2);
		if (low >= 0xdc00 && low < 0xe000) {
			*i += 6;
			return mr_utf8(0x10000 + (uint32_t)((r - 0xd800) << 10) + (uint32_t)(low - 0xdc00), out);
		}
	}
	return mr_utf8(r < 0 || (r >= 0xd800 && r < 0xe000) ? 0xfffd : (uint32_t)r, out);
}

// mr_named reports whether a key, the inside of a string, is a name.
static inline bool mr_named(mr_str key, bool escaped, const mr_seg *seg) {
	if (!escaped && !seg->escaped) return mr_eq(key, seg->raw);
	size_t i = 0, j = 0;
	while (i < key.n) {
		uint8_t c[4];
		size_t n = mr_unescape(key, &i, c);
		for (size_t k = 0; k < n; k++)
			if (j >= seg->raw.n || mr_seg_at(seg, &j) != c[k]) return false;
	}
	return j == seg->raw.n;
}

// mr_index is the element of an array that a name means, SIZE_MAX for none.
static inline size_t mr_index(const mr_seg *seg) {
	mr_str s = seg->raw;
	if (!s.n || s.n > 9 || (s.p[0] == '0' && s.n > 1)) return SIZE_MAX;
	size_t n = 0;
	for (size_t i = 0; i < s.n; i++) {
		if (!mr_digit(s, i)) return SIZE_MAX;
		n = n * 10 + (s.p[i] - '0');
	}
	return n;
}

// ---- members ----

// Walks the members of an object or the elements of an array.
typedef struct {
	mr_str doc, key;
	size_t at, count, close, comma, start, from;
	bool array, escaped, bad;
} mr_scan;

static inline bool mr_open(mr_scan *s, mr_str doc, size_t at) {
	*s = (mr_scan){.doc = doc, .at = at + 1};
	if (at >= doc.n || (doc.p[at] != '{' && doc.p[at] != '[')) return false;
	s->array = doc.p[at] == '[';
	return true;
}

// mr_member comes to the value of the next member. Its caller moves s->at to the value's end.
static inline bool mr_member(mr_scan *s) {
	mr_str d = s->doc;
	size_t at = mr_space(d, s->at);
	s->bad = true; // until it is not
	if (at >= d.n) return false;
	if (d.p[at] == '}' || d.p[at] == ']') {
		s->bad = s->array != (d.p[at] == ']');
		s->close = at;
		return false;
	}
	if (s->count) {
		if (d.p[at] != ',') return false;
		s->comma = at;
		at = mr_space(d, at + 1);
	}
	s->start = at;
	if (!s->array) {
		if (at >= d.n || d.p[at] != '"') return false;
		size_t end = mr_quoted(d, at, &s->escaped);
		if (!end) return false;
		s->key = (mr_str){d.p + at + 1, end - at - 2};
		at = mr_space(d, end);
		if (at >= d.n || d.p[at] != ':') return false;
		at = mr_space(d, at + 1);
	}
	s->from = at;
	s->count++;
	s->bad = false;
	return true;
}

// mr_past moves past the value at hand and returns its end.
static inline size_t mr_past(mr_scan *s) {
	size_t end = mr_skip(s->doc, s->from);
	s->bad = !end;
	s->at = end;
	return end;
}

static inline bool mr_is(const mr_scan *s, const mr_seg *seg) {
	return s->array ? mr_index(seg) == s->count - 1 : mr_named(s->key, s->escaped, seg);
}

// ---- reading ----

static inline mr_str mr_find(mr_str doc, mr_str path, bool any) {
	size_t from = mr_space(doc, 0), to = 0;
	if (!path.n) to = mr_skip(doc, from);
	for (bool more = path.n > 0; more;) {
		mr_seg seg;
		mr_scan s;
		more = mr_cut(&path, &seg);
		to = 0;
		if (!mr_open(&s, doc, from)) return MR_NONE;
		while (mr_member(&s)) {
			size_t end = mr_past(&s);
			if (!end) return MR_NONE;
			if (mr_is(&s, &seg)) {
				from = s.from;
				to = end;
				if (any && !more) break;
			}
		}
		if (s.bad || !to) return MR_NONE;
	}
	return to ? (mr_str){doc.p + from, to - from} : MR_NONE;
}

// mr_get returns the value at a path as it stands in the document; p is NULL if there is none.
static inline mr_str mr_get(mr_str doc, mr_str path) { return mr_find(doc, path, false); }

// mr_has reports whether there is a value at a path, null included.
static inline bool mr_has(mr_str doc, mr_str path) { return mr_find(doc, path, true).p != 0; }

// mr_get_string returns the string at a path. Without escapes it is a view of the document, else of buf, to
// which it is appended.
static inline bool mr_get_string(mr_str doc, mr_str path, mr_buf *buf, mr_str *out) {
	mr_str v = mr_get(doc, path);
	if (v.n < 2 || v.p[0] != '"') return false;
	v = (mr_str){v.p + 1, v.n - 2};
	size_t i = 0, start = buf->n;
	while (i < v.n && v.p[i] != '\\') i++;
	if (i == v.n) {
		*out = v;
		return true;
	}
	for (i = 0; i < v.n;) {
		uint8_t c[4];
		mr_append(buf, (mr_str){c, mr_unescape(v, &i, c)});
	}
	*out = (mr_str){buf->p + start, buf->n - start};
	return true;
}

// mr_get_int returns the integer at a path; 1.0 and 1e3 are none.
static inline bool mr_get_int(mr_str doc, mr_str path, int64_t *out) {
	mr_str v = mr_get(doc, path);
	bool negative = v.n && v.p[0] == '-';
	uint64_t n = 0, limit = (uint64_t)INT64_MAX + negative;
	if (v.n == (size_t)negative) return false;
	for (size_t i = negative; i < v.n; i++) {
		if (!mr_digit(v, i)) return false;
		uint64_t digit = v.p[i] - '0';
		if (n > (limit - digit) / 10) return false;
		n = n * 10 + digit;
	}
	*out = (int64_t)(negative ? 0 - n : n);
	return true;
}

// mr_get_bool returns the boolean at a path.
static inline bool mr_get_bool(mr_str doc, mr_str path, bool *out) {
	mr_str v = mr_get(doc, path);
	*out = mr_eq(v, MR("true"));
	return *out || mr_eq(v, MR("false"));
}

// mr_is_object reports whether the document is a JSON object, as far as a scan of it can tell.
static inline bool mr_is_object(mr_str doc) {
	mr_scan s;
	if (!mr_open(&s, doc, mr_space(doc, 0)) || s.array) return false;
	while (mr_member(&s))
		if (!mr_past(&s)) return false;
	return !s.bad && mr_space(doc, s.close + 1) == doc.n;
}

// mr_elements begins to walk the array at a path; there are no elements if there is no array. A document that
// is cut off ends it early: ask mr_is_object first.
static inline mr_scan mr_elements(mr_str doc, mr_str path) {
	mr_scan s;
	if (!mr_open(&s, mr_get(doc, path), 0) || !s.array) s = (mr_scan){.array = true};
	return s;
}

// mr_next returns the next element as it stands in the document.
static inline bool mr_next(mr_scan *s, mr_str *element) {
	if (!mr_member(s)) return false;
	size_t end = mr_past(s);
	*element = (mr_str){s->doc.p + s->from, end - s->from};
	return end != 0;
}

// ---- writing ----

// mr_name appends the path of the member with a name, whatever bytes are in it.
static inline void mr_name(mr_buf *b, mr_str name) {
	for (size_t i = 0; i < name.n; i++) {
		uint8_t c = name.p[i];
		if (c == '.' || c == '\\' || c == '[') mr_push(b, '\\');
		mr_push(b, c);
	}
}

// mr_rune returns the length of the UTF-8 character at i, 0 if there is none.
static inline size_t mr_rune(mr_str s, size_t i) {
	uint8_t c = s.p[i];
	if (c < 0x80) return 1;
	size_t n = c >= 0xc2 && c < 0xe0 ? 2 : (c & 0xf0) == 0xe0 ? 3 : c >= 0xf0 && c < 0xf5 ? 4 : 0;
	if (!n || s.n - i < n) return 0;
	for (size_t k = 1; k < n; k++)
		if ((s.p[i + k] & 0xc0) != 0x80) return 0;
	uint8_t second = s.p[i + 1];
	bool overlong = (c == 0xe0 && second < 0xa0) || (c == 0xf0 && second < 0x90);
	bool beyond = (c == 0xed && second >= 0xa0) || (c == 0xf4 && second >= 0x90);
	return overlong || beyond ? 0 : n;
}

// mr_append_inside appends text as the inside of a JSON string; what is no UTF-8 is replaced.
static inline void mr_append_inside(mr_buf *b, mr_str s) {
	for (size_t i = 0; i < s.n;) {
		uint8_t c = s.p[i];
		size_t n = mr_rune(s, i);
		if (c == '"' || c == '\\') {
			mr_push(b, '\\');
			mr_push(b, c);
		} else if (c < 0x20) {
			mr_append(b, MR("\\u00"));
			mr_push(b, "0123456789abcdef"[c >> 4]);
			mr_push(b, "0123456789abcdef"[c & 15]);
		} else {
			mr_append(b, n ? (mr_str){s.p + i, n} : MR("\xef\xbf\xbd"));
		}
		i += n ? n : 1;
	}
}

// mr_append_string appends text as a JSON string.
static inline void mr_append_string(mr_buf *b, mr_str s) {
	mr_push(b, '"');
	mr_append_inside(b, s);
	mr_push(b, '"');
}

// One change of a document, for mr_apply. The first two make what is missing; the next two act where there is
// a value. A value is JSON, a text gets quoted.
typedef struct {
	uint8_t op;
	mr_str path, value;
} mr_edit;

enum { MR_SET, MR_SET_TEXT, MR_REPLACE, MR_REPLACE_TEXT, MR_REMOVE };

// What mr_apply returns: the document is not JSON; the path leads through a value that is no object, or past the
// end of an array; more than 64 edits, or more than 256 names in their paths.
enum { MR_OK, MR_ERR_JSON, MR_ERR_PATH, MR_ERR_EDITS };

#define MR_MAX_EDITS 64
#define MR_MAX_NAMES 256

// Copies a document with changes: what lies before done has been copied.
typedef struct {
	mr_str doc;
	mr_buf *dst;
	size_t done;
	const mr_edit *edits;
	mr_seg names[MR_MAX_NAMES]; // of all paths, one after the other
	uint16_t ends[MR_MAX_EDITS + 1];
} mr_editor;

static inline const mr_seg *mr_edit_name(const mr_editor *e, int edit, size_t depth, bool *last) {
	size_t at = e->ends[edit] + depth;
	*last = at + 1 == e->ends[edit + 1];
	return &e->names[at];
}

static inline bool mr_sets(const mr_editor *e, uint64_t active) {
	for (; active; active &= active - 1)
		if (e->edits[__builtin_ctzll(active)].op <= MR_SET_TEXT) return true;
	return false;
}

static inline void mr_copy_to(mr_editor *e, size_t at) {
	if (at <= e->done) return;
	mr_append(e->dst, (mr_str){e->doc.p + e->done, at - e->done});
	e->done = at;
}

static inline void mr_put(mr_editor *e, int edit) {
	const mr_edit *x = &e->edits[edit];
	if (x->op == MR_SET_TEXT || x->op == MR_REPLACE_TEXT) mr_append_string(e->dst, x->value);
	else mr_append(e->dst, x->value);
}

// mr_write puts an edit's value in the place of what lies from from to to.
static inline void mr_write(mr_editor *e, int edit, size_t from, size_t to) {
	mr_copy_to(e, from);
	mr_put(e, edit);
	e->done = to;
}

static inline bool mr_same_seg(const mr_seg *a, const mr_seg *b) {
	size_t i = 0, j = 0;
	while (i < a->raw.n && j < b->raw.n)
		if (mr_seg_at(a, &i) != mr_seg_at(b, &j)) return false;
	return i == a->raw.n && j == b->raw.n;
}

// mr_add writes members of an object: one for each name that the edits have at a depth.
static inline void mr_add(mr_editor *e, size_t depth, uint64_t missing, bool first) {
	while (missing) {
		bool last;
		const mr_seg *name = mr_edit_name(e, __builtin_ctzll(missing), depth, &last);
		int final = -1;
		uint64_t inside = 0;
		for (uint64_t m = missing; m; m &= m - 1) {
			int i = __builtin_ctzll(m);
			if (!mr_same_seg(mr_edit_name(e, i, depth, &last), name)) continue;
			missing &= ~(1ull << i);
			if (last) final = i;
			else inside |= 1ull << i;
		}
		if (!mr_sets(e, final >= 0 ? 1ull << final : inside)) continue;
		if (!first) mr_push(e->dst, ',');
		first = false;
		mr_push(e->dst, '"');
		for (size_t i = 0; i < name->raw.n;) { // up to the next backslash of the path
			if (name->escaped && name->raw.p[i] == '\\' && i + 1 < name->raw.n) i++;
			size_t end = i + 1;
			while (end < name->raw.n && !(name->escaped && name->raw.p[end] == '\\')) end++;
			mr_append_inside(e->dst, (mr_str){name->raw.p + i, end - i});
			i = end;
		}
		mr_append(e->dst, MR("\":"));
		if (final >= 0) {
			mr_put(e, final);
			continue;
		}
		mr_push(e->dst, '{');
		mr_add(e, depth + 1, inside, true);
		mr_push(e->dst, '}');
	}
}

// mr_within changes what the edits name inside the value at from, and tells where it ends.
static inline int mr_within(mr_editor *e, size_t from, size_t depth, uint64_t active, size_t *end) {
	mr_scan s;
	if (!mr_open(&s, e->doc, from)) {
		if (!(*end = mr_skip(e->doc, from))) return MR_ERR_JSON;
		return mr_sets(e, active) ? MR_ERR_PATH : MR_OK;
	}
	size_t kept = 0;
	uint64_t missing = active;
	while (mr_member(&s)) {
		int final = -1;
		uint64_t inside = 0;
		for (uint64_t m = s.array ? missing : active; m; m &= m - 1) {
			bool last;
			int i = __builtin_ctzll(m);
			if (!mr_is(&s, mr_edit_name(e, i, depth, &last))) continue;
			missing &= ~(1ull << i);
			if (last) final = i;
			else inside |= 1ull << i;
		}
		if (final < 0 && inside) {
			int err = mr_within(e, s.from, depth + 1, inside, &s.at);
			if (err) return err;
			kept++;
			continue;
		}
		size_t to = mr_past(&s);
		if (!to) return MR_ERR_JSON;
		if (final < 0 || e->edits[final].op != MR_REMOVE) {
			if (final >= 0) mr_write(e, final, s.from, to);
			kept++;
		} else if (kept) { // with the comma before it
			mr_copy_to(e, s.comma);
			e->done = to;
		} else { // with the comma after it
			mr_copy_to(e, s.start);
			e->done = mr_space(e->doc, to);
			if (e->done < e->doc.n && e->doc.p[e->done] == ',') e->done++;
		}
	}
	if (s.bad) return MR_ERR_JSON;
	if (missing && mr_sets(e, missing)) {
		if (s.array) return MR_ERR_PATH;
		mr_copy_to(e, s.close);
		mr_add(e, depth, missing, !kept);
	}
	*end = s.close + 1;
	return MR_OK;
}

static inline int mr_edit_all(mr_editor *e, int whole, uint64_t all) {
	size_t from = mr_space(e->doc, 0), to;
	if (whole < 0) {
		int err = mr_within(e, from, 0, all, &to);
		if (err) return err;
	} else {
		if (!(to = mr_skip(e->doc, from))) return MR_ERR_JSON;
		if (e->edits[whole].op == MR_REMOVE) return MR_ERR_PATH;
		mr_write(e, whole, from, to);
	}
	if (mr_space(e->doc, to) != e->doc.n) return MR_ERR_JSON;
	mr_copy_to(e, e->doc.n);
	return MR_OK;
}

// mr_apply appends to dst the document with changes, made in a single pass, every other byte as it was. Of two
// edits of one path the later counts; an edit inside a value that another one writes or removes does nothing.
// Missing members are appended in the order of their edits. On an error dst is as it was.
static inline int mr_apply(mr_buf *dst, mr_str doc, const mr_edit *edits, size_t count) {
	mr_editor e;
	size_t names = 0, kept = dst->n;
	int whole = -1;
	uint64_t all = 0;
	if (count > MR_MAX_EDITS) return MR_ERR_EDITS;
	e.doc = doc;
	e.dst = dst;
	e.done = 0;
	e.edits = edits;
	e.ends[0] = 0;
	for (size_t i = 0; i < count; i++) {
		mr_str path = edits[i].path;
		if (!path.n) whole = (int)i;
		for (bool more = path.n > 0; more;) {
			if (names == MR_MAX_NAMES) return MR_ERR_EDITS;
			more = mr_cut(&path, &e.names[names++]);
		}
		e.ends[i + 1] = (uint16_t)names;
		all |= 1ull << i;
	}
	int err = mr_edit_all(&e, whole, all);
	if (err) dst->n = kept;
	return err;
}

#endif
