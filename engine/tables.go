package engine

import (
	"encoding/binary"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// The engine's tables. Numbers in keys are big-endian, so that keys sort as numbers do.
const (
	tableMeta        storage.Table = 1  // "secret" → 32 bytes; "serial" → u32, the last number given; "forks" → []fork as JSON; "held" → see Engine.held
	tableDefinitions storage.Table = 2  // kind, NUL, name → a definition that the API owns, as JSON
	tableTopics      storage.Table = 3  // name → topicRow as JSON
	tableSubs        storage.Table = 4  // name → subRow as JSON
	tableCheckpoints storage.Table = 5  // topic u32, partition u32 → offset u64: see flush
	tableCursors     storage.Table = 6  // subscription u32, partition u32 → cursor row
	tableParked      storage.Table = 7  // subscription u32, due i64, partition u32, offset u64 → parked row
	tableParkedSize  storage.Table = 8  // subscription u32 → count u64, bytes u64
	tableLanes       storage.Table = 14 // subscription u32, hash of the key u64, partition u32, offset u64, due i64 → kind u8, parked row unless a marker
	tableReplies     storage.Table = 12 // topic u32, partition u32, offset u64 → reply row
	tableLettersDone storage.Table = 15 // topic u32, partition u32, offset u64 → nothing: the dead letter there is redriven or purged
	tableLetterFloor storage.Table = 16 // topic u32, partition u32 → offset u64: all dead letters below are
	tableSchedules   storage.Table = 22 // name → scheduleRow as JSON
	tableKeys        storage.Table = 26 // id → an API key without its secret, as whoever keeps it writes it
	tableReplays     storage.Table = 23 // subscription u32 → its replay, or the last one, as JSON
	tableFunctions   storage.Table = 20 // name → the versions that were in force, newest first, as JSON
	tableRevisions   storage.Table = 21 // 'r', number u64 → a revision of the rules as JSON; 'f', digest, chunk u32 → a part of a file of theirs

	tableTraces storage.Table = 24 // topic u32, partition u32, block u64, time i64 → tries; topic u32, partition u32 → bytes u64 of those: see traceBook

	tableReceipts storage.Table = 27 // span u32, topic u32, what it is of u8, 16 bytes of a hash → the id of the first: see receiving

	tableShelves   storage.Table = 28 // and 29, 30, one for each event.Shelf: length u8 and name of an owner, his key → what he keeps
	tableForwarded storage.Table = 31 // topic u32, 16 bytes of a hash of who forwards → how far he has come: see PublishForwarded

	tableInlets storage.Table = 32 // name of a bridge → the place from which it goes on to bring events in: see TakeIn

	tableState       storage.Table = 9  // subscription u32, partition u32, length u8 and name of a function, key → expiry i64, value
	tableStateExpiry storage.Table = 10 // subscription u32, partition u32, expiry i64, then as in tableState → nothing
	tableStateSize   storage.Table = 11 // subscription u32 → keys u64, bytes u64
)

var be = binary.BigEndian

func key32(a uint32) []byte { return be.AppendUint32(nil, a) }

func key32x2(a, b uint32) []byte { return be.AppendUint32(be.AppendUint32(make([]byte, 0, 8), a), b) }

// parkedKey orders a subscription's parked deliveries by due time.
func parkedKey(sub uint32, due int64, p event.Position) []byte {
	k := be.AppendUint32(make([]byte, 0, 24), sub)
	k = be.AppendUint64(k, uint64(due))
	k = be.AppendUint32(k, p.Partition)
	return be.AppendUint64(k, p.Offset)
}

func splitParkedKey(k []byte) (due int64, p event.Position) {
	return int64(be.Uint64(k[4:])), event.Position{Partition: be.Uint32(k[12:]), Offset: be.Uint64(k[16:])}
}

func put(t storage.Table, key, value []byte) storage.Op {
	return storage.Op{Table: t, Kind: storage.Put, Key: key, Value: value}
}

func del(t storage.Table, key []byte) storage.Op {
	return storage.Op{Table: t, Kind: storage.Delete, Key: key}
}

// delPrefix deletes every key of a table that begins with a number.
func delPrefix(t storage.Table, n uint32) storage.Op {
	return storage.Op{Table: t, Kind: storage.DeleteRange, Key: key32(n), Value: key32(n + 1)}
}
