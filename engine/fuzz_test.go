package engine

import (
	"encoding/base64"
	"encoding/binary"
	"runtime"
	"slices"
	"testing"
	"time"

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

// FuzzLease: of whatever a client gives back as a lease, nothing but the very id that it was given settles the delivery,
// gives it back or prolongs it; and nothing that another subscription has lent.
func FuzzLease(f *testing.F) {
	began := time.Now()
	w := newWorld(f, Options{Now: func() time.Time { return began }}) // a lease that ran out would be lost for that reason alone
	w.apply(specOf(pullSpec("mine", "orders", ""), pullSpec("theirs", "orders", "")))
	w.publish("orders", "a", "b")
	mine, theirs := w.pull("mine", 2), w.pull("theirs", 2)
	given, _ := base64.RawURLEncoding.DecodeString(mine[0].ID)
	f.Fuzz(func(t *testing.T, kind uint8, text string, change []byte) {
		var id string
		switch kind % 4 {
		case 0: // anything
			id = text
		case 1: // a good one's bytes changed, and perhaps shorter or longer
			b := slices.Clone(given)
			for i, x := range change {
				if i < len(b) {
					b[i] ^= x
				} else {
					b = append(b, x)
				}
			}
			id = base64.RawURLEncoding.EncodeToString(b[:max(0, len(b)-len(text))])
		case 2: // its letters, with something among them
			at := min(int(kind/4), len(mine[0].ID))
			id = mine[0].ID[:at] + text + mine[0].ID[at:]
		case 3: // of another subscription, perhaps under the tag of one of ours
			b, _ := base64.RawURLEncoding.DecodeString(theirs[0].ID)
			for i, x := range change {
				if i < 12 && x&1 == 1 {
					copy(b[leaseIDSize+i:], given[leaseIDSize+i:][:1])
				}
			}
			id = base64.RawURLEncoding.EncodeToString(b)
		}
		if id == mine[0].ID {
			return
		}
		for _, how := range []event.Settling{{Verb: event.Ack}, {Verb: event.Nack}, {Verb: event.Extend, Deadline: time.Minute}, {Verb: event.Extend}} {
			lost, err := w.e.Settle(t.Context(), "mine", []string{id}, how)
			if err != nil || len(lost) != 1 || lost[0].Lease != id {
				t.Fatalf("verb %d of %q: %v, %v", how.Verb, id, lost, err)
			}
		}
		s, c, err := w.e.pullable("mine")
		if err != nil {
			t.Fatal(err)
		}
		defer s.leave(c)
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.leases.out) != 2 {
			t.Fatalf("%q: %d deliveries are out", id, len(s.leases.out))
		}
	})
}
