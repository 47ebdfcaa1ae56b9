package main

import (
	"os"
	"syscall"
)

// withParent has the kernel end a child when this process is killed and cannot do it.
func withParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }

func fdatasync(f *os.File) error { return syscall.Fdatasync(int(f.Fd())) }
