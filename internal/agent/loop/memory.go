package loop

import "runtime/debug"

// Frugal sets the garbage collector for a process that is an idle agent and nothing else: it is to be small, and has time.
func Frugal() {
	debug.SetGCPercent(20)
	debug.SetMemoryLimit(12 << 20)
}

// releaseMemory gives back what a pass needed.
func releaseMemory() { debug.FreeOSMemory() }
