package main

import (
	"errors"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"
)

// apart starts a child in a group of its own, so that Ctrl-C is this process's to act on.
func apart() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{CreationFlags: windows.CREATE_NEW_PROCESS_GROUP}
}

// askToEnd asks a child that was started apart to end in order. Windows has no SIGTERM; Ctrl-Break is what reaches
// another group, and Go's runtime tells of it as os.Interrupt.
func askToEnd(p *os.Process) error {
	return windows.GenerateConsoleCtrlEvent(windows.CTRL_BREAK_EVENT, uint32(p.Pid))
}

// isRefused says whether nothing listens where a connection was tried.
func isRefused(err error) bool { return errors.Is(err, windows.WSAECONNREFUSED) }

// openFiles is how many files and connections this process may have open.
func openFiles() (uint64, error) {
	return 0, errors.New("Windows sets no limit that can be read; memory is the bound")
}

// lockFile takes a file's lock or fails at once. It ends when the file is closed or its process ends.
func lockFile(f *os.File) error {
	return windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, &windows.Overlapped{})
}

// heldElsewhere tells that a lock is somebody else's from what else keeps one from being had.
func heldElsewhere(err error) bool { return errors.Is(err, windows.ERROR_LOCK_VIOLATION) }

// unlockAndRemove closes first: Windows removes no file that is open. One that somebody else has opened by now stays.
func unlockAndRemove(f *os.File) error {
	err := f.Close()
	_ = os.Remove(f.Name())
	return err
}

// syncFolder does nothing: Windows syncs no folder, and what was renamed is up to NTFS's journal.
func syncFolder(string) error { return nil }

// machineMemory is the machine's memory in bytes.
func machineMemory() int64 {
	var s struct {
		size, load                                                            uint32
		total, free, totalPage, freePage, totalVirtual, freeVirtual, extended uint64
	}
	s.size = uint32(unsafe.Sizeof(s))
	call := windows.NewLazySystemDLL("kernel32.dll").NewProc("GlobalMemoryStatusEx")
	if ok, _, _ := call.Call(uintptr(unsafe.Pointer(&s))); ok == 0 {
		return unknownMemory
	}
	return int64(s.total)
}
