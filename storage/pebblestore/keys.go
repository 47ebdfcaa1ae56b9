package pebblestore

import (
	"encoding/binary"
	"fmt"

	"github.com/millrace/millrace/engine/event"
	"github.com/millrace/millrace/storage"
)

// The keys of the data directory. Everything of one log lies together under (kind, topic, partition), so
// that retention and DropLog are single range deletes.
//
//	00 name                         format, epoch
//	01 topic partition              row of a log
//	02 topic partition first        row of a sealed chunk
//	03 topic partition first        block
//	04 topic partition first        dedupe entries of one commit
//	10+table key                    a table's row
const (
	kindMeta   = 0x00
	kindLog    = 0x01
	kindChunk  = 0x02
	kindBlock  = 0x03
	kindDedupe = 0x04
	kindTable  = 0x10

	logKeySize = 9
	keySize    = logKeySize + 8
)

var be = binary.BigEndian
var le = binary.LittleEndian

var (
	keyFormat = []byte{kindMeta, 'f', 'o', 'r', 'm', 'a', 't'}
	keyEpoch  = []byte{kindMeta, 'e', 'p', 'o', 'c', 'h'}
)

func appendLogKey(dst []byte, kind byte, id storage.LogID) []byte {
	dst = append(dst, kind)
	dst = be.AppendUint32(dst, id.Topic)
	return be.AppendUint32(dst, id.Partition)
}

func appendKey(dst []byte, kind byte, id storage.LogID, o event.Offset) []byte {
	return be.AppendUint64(appendLogKey(dst, kind, id), o)
}

// logKeyEnd is the exclusive end of a log's keys of a kind.
func logKeyEnd(kind byte, id storage.LogID) []byte {
	return append(appendKey(nil, kind, id, ^event.Offset(0)), 0)
}

func keyOffset(key []byte) event.Offset { return be.Uint64(key[logKeySize:]) }

func appendTableKey(dst []byte, t storage.Table, key []byte) []byte {
	return append(append(dst, kindTable+byte(t)), key...)
}

// maxTable is the highest table number that keys have room for.
const maxTable = 0xFF - kindTable - 1

// A block's value is a header of blockHeader bytes, then the records:
//
//	0 u32 count · 4 u32 reserved · 8 i64 received time of the last event
const blockHeader = 16

func parseBlock(id storage.LogID, first event.Offset, v []byte) (count int, last int64, records []byte, err error) {
	if len(v) < blockHeader+event.HeaderSize {
		return 0, 0, nil, fmt.Errorf("log %s: block %d has %d bytes", logName(id), first, len(v))
	}
	count, last, records = int(le.Uint32(v)), int64(le.Uint64(v[8:])), v[blockHeader:]
	if r := event.Record(records); count == 0 || r.Offset() != first || r.Partition() != id.Partition || r.Len() > len(records) || r.Len() < event.HeaderSize {
		return 0, 0, nil, fmt.Errorf("log %s: block %d begins with a record of offset %d, %d bytes", logName(id), first, r.Offset(), r.Len())
	}
	return count, last, records, nil
}

// A log's row: where reading starts, what is known even when the ring is empty, where dedupe entries start.
//
//	0 u64 head · 8 u64 next · 16 i64 last received · 24 u64 first offset of dedupe entries
const logRowSize = 32

type logRow struct {
	head, next event.Offset
	last       int64
	dedupe     event.Offset
}

func (r logRow) append(dst []byte) []byte {
	dst = le.AppendUint64(dst, r.head)
	dst = le.AppendUint64(dst, r.next)
	dst = le.AppendUint64(dst, uint64(r.last))
	return le.AppendUint64(dst, r.dedupe)
}

func parseLogRow(id storage.LogID, v []byte) (logRow, error) {
	if len(v) != logRowSize {
		return logRow{}, fmt.Errorf("log %s: its row has %d bytes, not %d", logName(id), len(v), logRowSize)
	}
	return logRow{le.Uint64(v), le.Uint64(v[8:]), int64(le.Uint64(v[16:])), le.Uint64(v[24:])}, nil
}

// A chunk is a run of blocks that retention drops whole.
type chunk struct {
	first      event.Offset
	count      uint64
	bytes      int64 // of records
	begin, end int64 // received times of the first and last event
}

func (c *chunk) next() event.Offset { return c.first + c.count }

const chunkRowSize = 32

func (c *chunk) append(dst []byte) []byte {
	dst = le.AppendUint64(dst, c.count)
	dst = le.AppendUint64(dst, uint64(c.bytes))
	dst = le.AppendUint64(dst, uint64(c.begin))
	return le.AppendUint64(dst, uint64(c.end))
}

func parseChunk(id storage.LogID, first event.Offset, v []byte) (chunk, error) {
	if len(v) != chunkRowSize {
		return chunk{}, fmt.Errorf("log %s: the row of chunk %d has %d bytes, not %d", logName(id), first, len(v), chunkRowSize)
	}
	return chunk{first, le.Uint64(v), int64(le.Uint64(v[8:])), int64(le.Uint64(v[16:])), int64(le.Uint64(v[24:]))}, nil
}

// logName names a log in errors: the store knows topics by number only.
func logName(id storage.LogID) string { return fmt.Sprintf("%d/%d", id.Topic, id.Partition) }
