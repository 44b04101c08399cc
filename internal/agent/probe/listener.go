package probe

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Process is a process that was seen, and not a later one with its number.
type Process struct {
	PID  int
	Name string
	// born is when it was started, in the kernel's ticks since the machine was. Number and birth together name one process.
	born string
}

func (p Process) String() string { return fmt.Sprintf("%s (process %d)", p.Name, p.PID) }

// Runs reports whether the process is still there. One that has ended, and whose parent has not asked why yet, is not: the
// kernel has closed its files.
func (p Process) Runs() bool {
	now, alive := processOf(p.PID)
	return alive && now.born == p.born
}

// processOf is who has a number now (proc(5), /proc/PID/stat).
func processOf(pid int) (p Process, alive bool) {
	text, err := readKernel(fmt.Sprintf("/proc/%d/stat", pid), 4<<10)
	if err != nil {
		return Process{}, false
	}
	// The second field is the name, in parentheses, which may hold whatever the process likes; the last one closes it.
	open, end := bytes.IndexByte(text, '('), bytes.LastIndexByte(text, ')')
	if open < 0 || end < open {
		return Process{}, false
	}
	fields := strings.Fields(string(text[end+1:]))
	const state, start = 0, 19 // fields 3 and 22
	if len(fields) <= start {
		return Process{}, false
	}
	return Process{PID: pid, Name: printable(string(text[open+1 : end])), born: fields[start]}, fields[state] != "Z" && fields[state] != "X"
}

// Listening is what listened at an address at some moment.
type Listening struct {
	// Processes hold the sockets. Process 1 is left out: it holds sockets for services that it starts, and outlives them. It is
	// empty where this process may not see what others have open, which takes more than to be root without CAP_SYS_PTRACE.
	Processes []Process
	sockets   []string // inodes of the sockets, which everybody may see
	address   string
}

// Listeners looks who listens at an address. Nothing is known of whom another network namespace hides.
func Listeners(address string) Listening {
	l := Listening{address: address, sockets: socketsAt(address)}
	if len(l.sockets) > 0 {
		l.Processes = holders(l.sockets)
	}
	return l
}

// Known reports whether anything was found.
func (l Listening) Known() bool { return len(l.sockets) > 0 }

// Ended reports whether whoever listened then is not there any more, whatever listens now: none of the processes runs, or, where
// those are not known, none of the sockets is open.
func (l Listening) Ended() bool {
	switch {
	case len(l.Processes) > 0:
		return !slices.ContainsFunc(l.Processes, Process.Runs)
	case len(l.sockets) > 0:
		now := socketsAt(l.address)
		return !slices.ContainsFunc(l.sockets, func(s string) bool { return slices.Contains(now, s) })
	}
	return false
}

// socketsAt are the inodes of the sockets that listen at an address.
func socketsAt(address string) []string {
	at, err := dialable(address)
	if err != nil {
		return nil
	}
	to, err := netip.ParseAddrPort(at)
	if err != nil { // a name: its port is what can be compared
		_, port, _ := strings.Cut(at, ":")
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return nil
		}
		to = netip.AddrPortFrom(netip.Addr{}, uint16(n))
	}
	var sockets []string
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		text, err := readKernel(table, 64<<20)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			if inode := listensAt(line, to); inode != "" {
				sockets = append(sockets, inode)
			}
		}
	}
	return sockets
}

// listensAt is the inode of a line of /proc/net/tcp or tcp6 that is a socket which listens where to leads; else empty.
func listensAt(line string, to netip.AddrPort) string {
	const local, state, inode, listens = 1, 3, 9, "0A"
	fields := strings.Fields(line)
	if len(fields) <= inode || fields[state] != listens {
		return ""
	}
	host, port, _ := strings.Cut(fields[local], ":")
	n, err := strconv.ParseUint(port, 16, 16)
	if err != nil || uint16(n) != to.Port() {
		return ""
	}
	at, err := kernelAddress(host)
	if err != nil || to.Addr().IsValid() && !at.IsUnspecified() && at != to.Addr().Unmap() {
		return ""
	}
	return fields[inode]
}

// kernelAddress reads an address of /proc/net: words of 32 bits, each printed as the machine counts.
func kernelAddress(text string) (netip.Addr, error) {
	octets, err := hex.DecodeString(text)
	if err != nil {
		return netip.Addr{}, err
	}
	for word := octets; len(word) >= 4; word = word[4:] {
		binary.NativeEndian.PutUint32(word, binary.BigEndian.Uint32(word))
	}
	at, ok := netip.AddrFromSlice(octets)
	if !ok {
		return netip.Addr{}, fmt.Errorf("%q is no address", text)
	}
	return at.Unmap(), nil
}

// holders are the processes that have one of the sockets open.
func holders(inodes []string) []Process {
	sockets := map[string]bool{}
	for _, inode := range inodes {
		sockets["socket:["+inode+"]"] = true
	}
	open, err := filepath.Glob("/proc/[0-9]*/fd")
	if err != nil {
		return nil
	}
	var all []Process
	for _, dir := range open {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(dir)))
		if err != nil || pid == 1 {
			continue
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // it has ended, or is not ours to look at
		}
		for _, e := range entries {
			target, err := os.Readlink(filepath.Join(dir, e.Name()))
			if err != nil || !sockets[target] {
				continue
			}
			if p, alive := processOf(pid); alive {
				all = append(all, p)
			}
			break
		}
	}
	return all
}

// readKernel reads a file of the kernel's, whose size it does not say.
func readKernel(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAtMost(f, limit)
}
