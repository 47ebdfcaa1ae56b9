package main

import (
	"math"
	"os"
	"path/filepath"
	"testing"
)

// A unit of systemd's has its MemoryMax= at its own place below the cgroups' root, a container at the root.
func TestCgroupMemory(t *testing.T) {
	unit := map[string]string{"proc/self/cgroup": "0::/system.slice/millrace.service\n"}
	for name, tt := range map[string]struct {
		files map[string]string
		want  int64
	}{
		"none":          {nil, math.MaxInt64},
		"no bound":      {map[string]string{"sys/fs/cgroup/memory.max": "max\n"}, math.MaxInt64},
		"container":     {map[string]string{"sys/fs/cgroup/memory.max": "524288000\n", "proc/self/cgroup": "0::/\n"}, 524288000},
		"the old kind":  {map[string]string{"sys/fs/cgroup/memory/memory.limit_in_bytes": "1048576\n"}, 1 << 20},
		"unit":          {map[string]string{"sys/fs/cgroup/system.slice/millrace.service/memory.max": "419430400\n"}, 400 << 20},
		"unit in slice": {map[string]string{"sys/fs/cgroup/system.slice/millrace.service/memory.max": "max\n", "sys/fs/cgroup/system.slice/memory.max": "209715200\n"}, 200 << 20},
		"elsewhere":     {map[string]string{"sys/fs/cgroup/memory.max": "4096\n", "proc/self/cgroup": "0::/../../etc\n"}, 4096},
	} {
		root := t.TempDir()
		for _, files := range []map[string]string{unit, tt.files} {
			for file, text := range files {
				path := filepath.Join(root, file)
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		if got := cgroupMemory(root); got != tt.want {
			t.Errorf("%s: %d bytes, want %d", name, got, tt.want)
		}
	}
}
