//go:build !linux

package main

import (
	"os"
	"syscall"
)

// withParent: only Linux ends children with their parent.
func withParent() *syscall.SysProcAttr { return nil }

func fdatasync(f *os.File) error { return f.Sync() }
