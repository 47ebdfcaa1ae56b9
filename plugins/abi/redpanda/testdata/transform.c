// A data transform that declares what it imports by hand. It passes records on; by the first byte of a record's value it
// does what no transform should, and by MODE in its environment things that no record asks for.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define IMPORT(name) __attribute__((import_module("redpanda_transform"), import_name(#name)))
IMPORT(check_abi_version_2) void check_abi_version(void);
IMPORT(read_batch_header) int32_t read_batch_header(int64_t *, int32_t *, int32_t *, int16_t *, int32_t *, int64_t *, int64_t *, int64_t *, int16_t *, int32_t *);
IMPORT(read_next_record) int32_t read_next_record(int8_t *, int64_t *, int64_t *, uint8_t *, int32_t);
IMPORT(write_record) int32_t write_record(const uint8_t *, int32_t);
IMPORT(write_record_with_options) int32_t write_record_with_options(const uint8_t *, int32_t, const uint8_t *, int32_t);
__attribute__((import_module("redpanda_schema_registry"), import_name("check_abi_version_0"))) void check_registry(void);
__attribute__((import_module("redpanda_schema_registry"), import_name("get_schema_definition_len"))) int32_t definition_len(int32_t, int32_t *);

static uint8_t buf[1 << 21], out[1 << 10];

static int64_t varint(const uint8_t **p) {
	uint64_t v = 0;
	for (int shift = 0;; shift += 7) {
		uint8_t c = *(*p)++;
		v |= (uint64_t)(c & 0x7F) << shift;
		if (c < 0x80) return (int64_t)(v >> 1) ^ -(int64_t)(v & 1);
	}
}

int main(void) {
	const char *mode = getenv("MODE");
	int64_t base, first, last, producer, time, offset;
	int32_t count, epoch, delta, sequence;
	int16_t attributes, producer_epoch;
	int8_t attr;
	check_abi_version();
	check_registry();
	if (mode != NULL && strcmp(mode, "ends") == 0) return 0;
	if (mode != NULL && strcmp(mode, "exits") == 0) exit(4);
	if (mode != NULL && strcmp(mode, "spins") == 0) for (volatile int i = 0;; i++) {}
	if (mode != NULL && strcmp(mode, "early") == 0 && (write_record(out, 3) >= 0 || read_next_record(&attr, &time, &offset, buf, sizeof buf) >= 0)) exit(5);
	for (;;) {
		if (mode != NULL && strcmp(mode, "wild") == 0) read_batch_header((int64_t *)-8, &count, &epoch, &attributes, &delta, &first, &last, &producer, &producer_epoch, &sequence);
		int32_t most = read_batch_header(&base, &count, &epoch, &attributes, &delta, &first, &last, &producer, &producer_epoch, &sequence);
		if (most < 0 || (uint32_t)most > sizeof buf || delta < count - 1) exit(6);
		if (mode != NULL && strcmp(mode, "deaf") == 0) continue;
		for (int32_t i = 0; i < count; i++) {
			int32_t n = read_next_record(&attr, &time, &offset, buf, most);
			if (n < 0 || n > most || offset < base + i || offset > base + delta) exit(7);
			const uint8_t *p = buf;
			int64_t key = varint(&p);
			if (key > 0) p += key;
			int64_t value = varint(&p);
			static const uint8_t topic[] = {1, 10, 'a', 'u', 'd', 'i', 't'};
			static const uint8_t bare[] = {1, 4, 'h', 'i', 2, 4, 'A', '!', 2, 'x'};
			static const uint8_t headers[] = {
				2, 'k', 1, 12, 14, 'c', 'e', '_', 't', 'y', 'p', 'e', 2, 'u', 24, 'c', 'o', 'n', 't', 'e', 'n', 't', '-', 't', 'y', 'p', 'e', 20, 't', 'e', 'x', 't', '/', 'p', 'l', 'a', 'i', 'n',
				10, 'c', 'e', '_', 'i', 'd', 4, 'i', 'd', 12, 'r', 'e', 'g', 'i', 'o', 'n', 1, 2, 'n', 2, '7', 4, 'N', 'o', 2, 'x'};
			switch (value > 0 ? *p : 0) {
			case 'd': continue;
			case 't': __builtin_trap();
			case 'z': for (volatile int k = 0;; k++) {}
			case 'f': for (;;) write_record(buf, n);
			case 'F': memset(out, 0, sizeof out); for (;;) write_record(buf, n), write_record(buf, n);
			case 'o': write_record((const uint8_t *)-8, 64); continue;
			case 'O': write_record_with_options(buf, n, (const uint8_t *)-8, 64); continue;
			case 'b': write_record(buf, n - 1); continue;
			case 'B': write_record(out, 0); continue;
			case 'q': write_record_with_options(buf, n, topic + 1, 3); continue;
			case 'T': write_record_with_options(buf, n, topic, sizeof topic); continue;
			case 'n': write_record(bare, sizeof bare); continue;
			case 'h': write_record(headers, sizeof headers); continue;
			case 'r': if (definition_len(1, &delta) >= 0) exit(8); write_record(buf, n); continue;
			case 'e': if (read_next_record(&attr, &time, &offset, buf, 1) >= 0) exit(9); exit(1);
			case 's': goto next;
			case 'p': if (read_next_record((int8_t *)-1, &time, &offset, buf, most) >= 0) exit(9); continue;
			}
			if (write_record(buf, n) != n) exit(2);
		}
	next:;
	}
}
