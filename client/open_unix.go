//go:build unix

package client

import "syscall"

// openNow keeps open from waiting for a writer, where a FIFO was put in the place of a file after that was looked at.
const openNow = syscall.O_NONBLOCK
