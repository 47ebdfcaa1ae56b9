package main

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// memorySplit is how --memory is divided. The collector's limit is all of it: what the parts do not use
// is room for the heap.
type memorySplit struct {
	Total     int64 // the collector's limit
	Cache     int64 // Pebble's block cache
	MemTable  int64 // one of Pebble's memtables; two may be alive
	Fresh     int64 // blocks just committed, from which live readers are fed
	Dedupe    int64 // the index of ids
	Functions int64 // linear memory of function instances, together
	Bodies    int64 // large bodies of requests while they are read and answered, together
	Sends     int64 // large events while they are sent, together
}

// splitMemory divides total bytes: an eighth for the cache and for fresh blocks each, a sixteenth for a
// memtable and the dedupe index, a quarter for functions, an eighth for requests' bodies and for events on their way out each; each within what it can make use of.
func splitMemory(total int64) memorySplit {
	clamp := func(v, low, high int64) int64 { return max(low, min(v, high)) }
	return memorySplit{
		Total:     total,
		Cache:     clamp(total/8, 4<<20, 512<<20),
		MemTable:  clamp(total/16, 2<<20, 64<<20),
		Fresh:     clamp(total/8, 4<<20, 256<<20),
		Dedupe:    clamp(total/16, 1<<20, 64<<20),
		Functions: clamp(total/4, 64<<20, 8<<30),
		Bodies:    clamp(total/8, 16<<20, 512<<20),
		Sends:     clamp(total/8, 8<<20, 512<<20),
	}
}

func (m memorySplit) String() string {
	return fmt.Sprintf("%s (cache %s, memtable %s, fresh blocks %s, ids %s, functions %s, bodies %s, sends %s)", sizeText(m.Total),
		sizeText(m.Cache), sizeText(m.MemTable), sizeText(m.Fresh), sizeText(m.Dedupe), sizeText(m.Functions), sizeText(m.Bodies), sizeText(m.Sends))
}

// defaultMemory is 80 % of what the cgroup allows, or of what the machine has.
func defaultMemory() int64 { return min(machineMemory(), cgroupMemory("/")) / 10 * 8 }

// cgroupMemory is the least that this process's cgroup and those above it allow, in bytes. A container sees its own as
// the root; a unit of systemd's does not, and its MemoryMax= stands where /proc/self/cgroup says. root is "/", but
// for tests.
func cgroupMemory(root string) int64 {
	least := int64(math.MaxInt64)
	look := func(file string) {
		if b, err := os.ReadFile(filepath.Join(root, "sys/fs/cgroup", file)); err == nil {
			if v, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil && v > 0 {
				least = min(least, v)
			}
		}
	}
	look("memory/memory.limit_in_bytes")
	at := "/"
	if b, err := os.ReadFile(filepath.Join(root, "proc/self/cgroup")); err == nil {
		for line := range strings.Lines(string(b)) {
			if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
				at = filepath.Join("/", path) // of a namespace elsewhere it begins with /..
			}
		}
	}
	for ; ; at = filepath.Dir(at) {
		look(filepath.Join(at, "memory.max"))
		if at == filepath.Dir(at) {
			return least
		}
	}
}

// unknownMemory is a careful guess where the system does not tell.
const unknownMemory = 1 << 30

// sizeText writes bytes as rules files do: 64MiB.
func sizeText(n int64) string {
	for _, u := range []struct {
		size int64
		name string
	}{{1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if n >= u.size {
			return strconv.FormatFloat(float64(n*10/u.size)/10, 'f', -1, 64) + u.name
		}
	}
	return strconv.FormatInt(n, 10) + "B"
}

// parseSize reads what sizeText writes, and plain bytes.
func parseSize(s string) (int64, error) {
	units := []struct {
		suffix string
		size   int64
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}, {"", 1}}
	for _, u := range units {
		if num, ok := strings.CutSuffix(s, u.suffix); ok {
			v, err := strconv.ParseFloat(num, 64)
			if err != nil || v <= 0 || v*float64(u.size) > 1<<60 {
				break
			}
			return int64(v * float64(u.size)), nil
		}
	}
	return 0, fmt.Errorf("size %q: want a number and B, KiB, MiB or GiB, such as 400MiB", s)
}
