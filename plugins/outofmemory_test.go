package plugins

import "testing"

// A child at its bound is told from one that a module brings down.
func TestOutOfMemory(t *testing.T) {
	for said, want := range map[string]bool{
		"fatal error: runtime: out of memory\n\ngoroutine 7 [running]:":                                                                      true,
		"runtime: mmap(0x0, 65536): cannot allocate memory":                                                                                  true,
		"SIGSEGV: segmentation violation\nPC=0x433bfd m=4 sigcode=1 addr=0x0\n\ngoroutine 0 gp=0x1 m=4 mp=0x2 [idle]:\nruntime.(*spanQueue)": true,
		"panic: runtime error: index out of range [3]\n\ngoroutine 1 [running]:":                                                             false,
		"panic: runtime error: invalid memory address or nil pointer dereference\n[signal SIGSEGV: segmentation violation]\n\ngoroutine 1":   false,
	} {
		if outOfMemory(said) != want {
			t.Errorf("%q: %v", said, !want)
		}
	}
}
