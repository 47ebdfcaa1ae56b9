package plugins

import (
	"syscall"
	"time"
)

// limitProcess bounds the CPU time and the writable memory of this process. Address space is left alone:
// the runtime reserves much more of it than it uses.
func limitProcess(cpu time.Duration, memory uint64) error {
	seconds := uint64(cpu / time.Second)
	if err := syscall.Setrlimit(syscall.RLIMIT_CPU, &syscall.Rlimit{Cur: seconds, Max: seconds + 1}); err != nil {
		return err
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_DATA, &syscall.Rlimit{Cur: memory, Max: memory}); err != nil {
		return err
	}
	return syscall.Setpriority(syscall.PRIO_PROCESS, 0, 10) // events go first
}
