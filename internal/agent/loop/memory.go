package loop

import (
	"bytes"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Frugal sets the garbage collector for a process that is an idle agent and nothing else: it is to be small, and has time. It
// leaves alone what the operator has set, as a node does: GOGC, and GOMEMLIMIT.
func Frugal() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(20)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(12 << 20)
	}
}

// releaseMemory gives back what a pass needed: the heap, and the pages of the program itself. The program is a node's too,
// and most of what was read of it when it started is never needed by an agent. Only mappings that nobody can write are given
// back; the kernel reads a page of them again from the file when it is touched.
func releaseMemory() {
	debug.FreeOSMemory()
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return
	}
	page := uint64(os.Getpagesize())
	for line := range bytes.Lines(maps) {
		f := strings.Fields(string(line))
		if len(f) < 6 || f[5] != self || (f[1] != "r-xp" && f[1] != "r--p") {
			continue
		}
		from, to, ok := strings.Cut(f[0], "-")
		start, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		if !ok || err1 != nil || err2 != nil || start%page != 0 {
			continue
		}
		// A refusal costs memory and nothing else.
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, uintptr(start), uintptr(end-start), unix.MADV_DONTNEED)
	}
}
