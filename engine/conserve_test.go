package engine

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/millrace/millrace/storage"
)

// Whatever is done in whatever order (publish, define, redefine, remove, reload, pull, ack, nack, extend, let
// leases run out, pause, resume, seek, flush, drain, cut the power at any operation of the file system, let time
// pass, at receivers that fail in every way): every event that was acknowledged is delivered or dead-lettered by
// each subscription that owes it, soon after the faults end; nothing else is delivered; what is settled stays
// settled; the events of a key keep their order where that is asked for.
func TestConservation(t *testing.T) {
	runs := 0
	rapid.Check(t, func(r *rapid.T) {
		if runs++; runs > 15 {
			return
		}
		seed := rapid.Uint64Range(0, 1<<20).Draw(r, "seed")
		choices := rapid.SliceOfN(rapid.SliceOfN(rapid.IntRange(0, 1<<12), 1, 12), 1, 60).Draw(r, "script")
		steps := make([]script, len(choices))
		for i, c := range choices {
			steps[i] = c
		}
		if err := conserve(t, seed, steps, noBug); err != nil {
			t.Fatal(err)
		}
	})
}

// soak is how long the long form of a test goes on: MILLRACE_SOAK minutes, 0 if that is not set.
func soak(t *testing.T) time.Duration {
	text := os.Getenv("MILLRACE_SOAK")
	minutes, err := strconv.Atoi(text)
	if text != "" && (err != nil || minutes < 0) {
		t.Fatalf("MILLRACE_SOAK is %q; want whole minutes", text)
	}
	return time.Duration(minutes) * time.Minute
}

// random makes a script that defines everything first, so that there is something to go wrong.
func random(seed uint64) []script {
	r := rand.New(rand.NewPCG(seed, 7))
	steps := make([]script, 50)
	for i := range steps {
		steps[i] = make(script, 12+r.IntN(40))
		for j := range steps[i] {
			steps[i][j] = r.IntN(1 << 12)
		}
	}
	for i := range names {
		steps[i][0], steps[i][1], steps[i][2] = 0, 5, i
	}
	return steps
}

// The same over scripts that are longer than those that shrink well: 8, or as many as MILLRACE_SOAK minutes hold.
func TestConservationOfLongScripts(t *testing.T) {
	began, last := time.Now(), time.Now()
	for seed := uint64(0); seed < 8 || time.Since(began) < soak(t); seed++ {
		if time.Since(last) > time.Minute {
			last = time.Now()
			t.Logf("%d scripts in %s", seed, time.Since(began).Round(time.Second))
		}
		if err := conserve(t, seed, random(seed), noBug); err != nil {
			t.Fatal(err)
		}
	}
}

// The check is able to fail: each bug that is planted around the engine is found soon.
func TestConservationFindsBugs(t *testing.T) {
	for name, b := range map[string]bug{"a skipped cursor flush": skippedCursor, "a dropped parked key": droppedParked,
		"an ack on 500": ackOn500, "a key out of order": swappedKeys} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(20) {
				if err := conserve(t, seed, random(seed), b); err != nil {
					text, _, _ := strings.Cut(err.Error(), "\n\n")
					t.Logf("found by %s", text)
					return
				}
			}
			t.Error("not found by 20 scripts")
		})
	}
}

// planted is a store that does less than it says.
type planted struct {
	storage.Store
	bug bug
}

func (p planted) Commit(ctx context.Context, b *storage.Batch) error {
	less := *b
	less.Ops = slices.DeleteFunc(slices.Clone(b.Ops), func(o storage.Op) bool {
		switch {
		case o.Kind != storage.Put:
			return false
		case p.bug == skippedCursor:
			return o.Table == tableCursors && len(b.Appends) == 0
		case p.bug == droppedParked:
			return o.Table == tableParked || o.Table == tableLanes
		}
		return false
	})
	return p.Store.Commit(ctx, &less)
}

func (p planted) Scan(ctx context.Context, t storage.Table, from, to []byte, fn func(key, value []byte) error) error {
	if p.bug != swappedKeys || t != tableLanes {
		return p.Store.Scan(ctx, t, from, to, fn)
	}
	var keys, values [][]byte
	err := p.Store.Scan(ctx, t, from, to, func(k, v []byte) error {
		keys, values = append(keys, slices.Clone(k)), append(values, slices.Clone(v))
		return nil
	})
	for i := len(keys) - 1; i >= 0 && err == nil; i-- {
		err = fn(keys[i], values[i])
	}
	if errors.Is(err, storage.ErrStop) {
		return nil
	}
	return err
}
