package engine

import (
	"encoding/base64"
	"encoding/binary"
	"runtime"
	"slices"
	"testing"

	"github.com/millrace/millrace/engine/event"
)

// FuzzCursor: whatever a client gives back as a cursor is refused or opens to the offsets that it says, no more than
// it has bytes; so is a row of the store.
func FuzzCursor(f *testing.F) {
	uvarints := func(v ...uint64) (b []byte) {
		for _, x := range v {
			b = binary.AppendUvarint(b, x)
		}
		return b
	}
	for _, b := range [][]byte{uvarints(1, 1, 0), uvarints(5<<32|7, 2, 1<<63, 3), uvarints(1, 1<<16), uvarints(1, 0), uvarints(1, 1, 2, 3), {0x80}, {1, 1, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x02}} {
		f.Add(base64.RawURLEncoding.EncodeToString(b), b)
	}
	f.Add("not a cursor", uvarints(9, 2, 3, 4))
	f.Fuzz(func(t *testing.T, cursor string, row []byte) {
		serial, offsets, err := openCursor(cursor)
		if err == nil {
			again := binary.AppendUvarint(binary.AppendUvarint(nil, serial), uint64(len(offsets)))
			for _, off := range offsets {
				again = binary.AppendUvarint(again, off)
			}
			s, o, err := openCursor(base64.RawURLEncoding.EncodeToString(again))
			if err != nil || s != serial || !slices.Equal(o, offsets) {
				t.Fatalf("%q opens to %d %v, and written anew to %d %v: %v", cursor, serial, offsets, s, o, err)
			}
			if cap(offsets) > len(cursor) {
				t.Fatalf("%d bytes of a cursor took memory for %d offsets", len(cursor), cap(offsets))
			}
		}
		if pos, err := event.ParsePosition(cursor); err == nil {
			if again, err := event.ParsePosition(pos.String()); err != nil || again != pos {
				t.Fatalf("%q is %v, and %v again", cursor, pos, again)
			}
		}
		if _, out, err := parseCursorRow(row); err == nil && len(out) > len(row) {
			t.Fatalf("%d bytes of a row hold %d offsets", len(row), len(out))
		}
	})
}

// A few bytes that claim many offsets take no memory for them.
func TestCursorThatClaimsMuch(t *testing.T) {
	claim := base64.RawURLEncoding.EncodeToString(binary.AppendUvarint([]byte{1}, 1<<16))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 100 {
		if _, _, err := openCursor(claim); err == nil {
			t.Fatal("it is taken")
		}
	}
	if runtime.ReadMemStats(&after); after.TotalAlloc-before.TotalAlloc > 10<<20 {
		t.Errorf("100 cursors of %d bytes took %d", len(claim), after.TotalAlloc-before.TotalAlloc)
	}
}
