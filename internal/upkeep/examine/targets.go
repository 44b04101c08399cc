package examine

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"chancery/internal/fault"
)

// MostPorts bounds the addresses times ports of a scan.
const MostPorts = 65_536

// Target is one thing that is looked at in a scan: a port, or a file.
type Target struct {
	Address string // HOST:PORT
	File    string
	Err     error // why a file or a directory below the one that was named cannot be looked at
	// Named says that the operator named this very port, so that it is told of even where nothing is found.
	Named bool
}

// DefaultPorts are those on which certificates are looked for where no ports are given.
func DefaultPorts() []string {
	return []string{
		"25", "110", "143", "389", "443", "465", "587", "636", "853", "993", "995", "2379", "3269", "5061", "5222", "5432", "5671", "5986", "6443",
		"6514", "8250", "8443", "8883", "9093", "10250", "16514",
	}
}

// Targets reads what is to be scanned: addresses (CIDR), HOST:PORTS, directories, files with certificates, and files with one
// HOST:PORT a line. Ports are for addresses. What would be too much is refused before anything is looked at.
func Targets(words, ports []string, limits WalkLimits) ([]Target, error) {
	if len(ports) == 0 {
		ports = DefaultPorts()
	}
	wanted, err := parsePorts(strings.Join(ports, ","))
	if err != nil {
		return nil, err
	}
	var all []Target
	count := 0
	for _, word := range words {
		more, err := targets(word, wanted, limits, MostPorts-count)
		if err != nil {
			return nil, err
		}
		for _, t := range more {
			if t.Address != "" {
				count++
			}
		}
		all = append(all, more...)
	}
	return once(all), nil
}

// once drops what is named twice.
func once(all []Target) []Target {
	seen := map[string]bool{}
	return slices.DeleteFunc(all, func(t Target) bool {
		key := t.Address + "\x00" + t.File
		had := seen[key]
		seen[key] = true
		return had
	})
}

func targets(word string, ports []string, limits WalkLimits, left int) ([]Target, error) {
	if st, err := os.Stat(word); err == nil {
		if st.IsDir() {
			return Walk(word, limits)
		}
		if !st.Mode().IsRegular() {
			return nil, fault.New(fault.Invalid, "%s is neither a regular file nor a directory", word)
		}
		return fileTargets(word, left)
	}
	if prefix, err := netip.ParsePrefix(word); err == nil {
		return addresses(prefix, ports, left)
	}
	if address, err := netip.ParseAddr(word); err == nil {
		return addresses(netip.PrefixFrom(address, address.BitLen()), ports, left)
	}
	host, list, ok := cutPorts(word)
	if !ok {
		return nil, fault.New(fault.Invalid, "%q is no file or directory, no CIDR such as 10.0.0.0/24, and no HOST:PORTS such as web1:443,8443,9000-9010",
			clean(word))
	}
	own, err := parsePorts(list)
	if err != nil {
		return nil, err
	}
	if len(own) > left {
		return nil, tooMany(word, len(own))
	}
	var all []Target
	for _, port := range own {
		all = append(all, Target{Address: net.JoinHostPort(host, port), Named: !strings.ContainsRune(list, '-')})
	}
	return all, nil
}

// cutPorts cuts HOST:PORTS, where an IPv6 address stands in brackets.
func cutPorts(word string) (host, ports string, ok bool) {
	at := strings.LastIndexByte(word, ':')
	if at < 1 || strings.ContainsRune(word, '/') {
		return "", "", false
	}
	host, ports = word[:at], word[at+1:]
	if strings.HasPrefix(host, "[") {
		inner, closed := strings.CutSuffix(host[1:], "]")
		if _, err := netip.ParseAddr(inner); !closed || err != nil {
			return "", "", false
		}
		return inner, ports, ports != ""
	}
	return host, ports, ports != "" && !strings.ContainsAny(host, ":[] ")
}

// parsePorts reads 443,8443,9000-9010.
func parsePorts(list string) ([]string, error) {
	var all []string
	for part := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			to = from
		}
		a, err1 := strconv.ParseUint(from, 10, 16)
		b, err2 := strconv.ParseUint(to, 10, 16)
		if err1 != nil || err2 != nil || a == 0 || a > b {
			return nil, fault.New(fault.Invalid, "ports: %q is no port and no range; 443, or 443,8443,9000-9010", clean(part))
		}
		for p := a; p <= b; p++ {
			all = append(all, strconv.FormatUint(p, 10))
		}
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

func addresses(prefix netip.Prefix, ports []string, left int) ([]Target, error) {
	bits := prefix.Addr().BitLen() - prefix.Bits()
	if bits > 16 || 1<<bits*len(ports) > left {
		return nil, tooManyOf(prefix, bits, len(ports))
	}
	var all []Target
	at := prefix.Masked().Addr()
	for range 1 << bits {
		for _, port := range ports {
			all = append(all, Target{Address: net.JoinHostPort(at.String(), port)})
		}
		at = at.Next()
	}
	return all, nil
}

func tooManyOf(prefix netip.Prefix, bits, ports int) error {
	size := fmt.Sprintf("2^%d", bits)
	if bits <= 16 {
		size = strconv.Itoa(1 << bits)
	}
	return fault.New(fault.TooLarge, "%s has %s addresses, with %s each; at most %d are looked at in one scan", prefix, size, count(ports, "port", "ports"), MostPorts).
		WithHint("scan it in parts, or with fewer --ports")
}

func tooMany(word string, n int) error {
	return fault.New(fault.TooLarge, "%s: %d more ports are too many; at most %d are looked at in one scan", clean(word), n, MostPorts).WithHint("scan in parts")
}

// fileTargets reads a file: one that holds certificates is looked at, and another is a list of HOST:PORT.
func fileTargets(path string, left int) ([]Target, error) {
	text, err := readFile(path, mostFile)
	if err != nil {
		return nil, err
	}
	if hasPEM(text) || bytes.IndexByte(text, 0) >= 0 || certificateName(path) {
		return []Target{{File: path, Named: true}}, nil
	}
	var all []Target
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		line, _, _ := strings.Cut(lines.Text(), "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		if _, _, ok := Address(line); !ok {
			return nil, fault.New(fault.Invalid, "%s: %q is not HOST:PORT", path, shorten(clean(line), 60)).At(fmt.Sprintf("%d:1", n))
		}
		if all = append(all, Target{Address: line, Named: true}); len(all) > left {
			return nil, tooMany(path, len(all))
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fault.New(fault.Invalid, "%s is no list of HOST:PORT, one a line: %w", path, err)
	}
	if len(all) == 0 {
		return nil, fault.New(fault.Invalid, "%s holds no certificate and names no HOST:PORT", path)
	}
	return all, nil
}

// certificateName reports whether a file's name says that it holds certificates or keys.
func certificateName(path string) bool {
	return slices.Contains([]string{".pem", ".crt", ".cer", ".cert", ".der", ".p7b", ".p7c", ".p12", ".pfx", ".jks", ".keystore", ".truststore", ".key", ".crl", ".0"},
		strings.ToLower(filepath.Ext(path)))
}
