package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ticks is USER_HZ, the unit of the times in /proc/PID/stat; Linux has it at 100 on all architectures that Go runs on.
const ticks = 100

// processTime is the processor time that a process took, and the children that it reaped.
func processTime(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, ok := strings.Cut(string(text), ") ") // the name before may hold anything but this
	fields := strings.Fields(rest)
	if !ok || len(fields) < 15 {
		return 0, fmt.Errorf("/proc/%d/stat is not as proc(5) says", pid)
	}
	var sum int64
	for _, f := range fields[11:15] { // utime stime cutime cstime
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return time.Duration(sum) * time.Second / ticks, nil
}

// ownTime is the processor time of this process.
func ownTime() (time.Duration, error) {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		return 0, err
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano()), nil
}

// familyTime is processTime of a process and its living children: PostgreSQL has one for each connection.
func familyTime(pid int) (time.Duration, error) {
	sum, err := processTime(pid)
	if err != nil {
		return 0, err
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0, err
	}
	for _, child := range strings.Fields(string(text)) {
		n, err := strconv.Atoi(child)
		if err != nil {
			return 0, err
		}
		if t, err := processTime(n); err == nil { // one that ended meanwhile is in its parent's time
			sum += t
		}
	}
	return sum, nil
}

// memory is a line of /proc/PID/status in octets: VmRSS is what is resident, VmHWM its peak.
func memory(pid int, line string) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for l := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(l, line+":"); ok {
			n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("/proc/%d/status has no %s", pid, line)
}

// forgetPeak sets VmHWM back to VmRSS (proc(5), clear_refs).
func forgetPeak(pid int) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
}

// diskUse is what the files below a directory take of the disk, holes left out.
func diskUse(dir string) (int64, error) {
	var sum int64
	err := filepath.WalkDir(dir, func(_ string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := entry.Info()
		if os.IsNotExist(err) {
			return nil // it was removed while we looked
		}
		if err != nil {
			return err
		}
		if stat, ok := st.Sys().(*syscall.Stat_t); ok && st.Mode().IsRegular() {
			sum += stat.Blocks * 512
		}
		return nil
	})
	return sum, err
}
