package examine

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
)

// TestScan: ports and files, those with problems and those without.
func TestScan(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	old := issue(t, o.issuer, "old", server("localhost"), expired)
	good, bad := o.leaf.sServer(t, o.leaf.path), old.sServer(t, old.path)
	ssh := say(t, func(c net.Conn) { _, _ = io.WriteString(c, "SSH-2.0-x\r\n"); _, _ = io.Copy(io.Discard, c) })
	dir := t.TempDir()
	list := put(t, filepath.Join(dir, "list"), []byte("# ports\n"+good+"\n\n"+bad+" # old\n"+ssh+"\n127.0.0.1:1\n"+good+"\n"), 0o644)
	tree := filepath.Join(dir, "tree", "a", "b")
	if err := os.MkdirAll(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(tree, "bundle.pem"), keyfile.EncodeCertificates(o.root.cert, o.issuer.cert), 0o644)
	put(t, filepath.Join(tree, "server.key"), keyPEM(t, o.leaf.key), 0o644) // everybody may read it
	put(t, filepath.Join(tree, "notes.txt"), []byte("nothing"), 0o644)
	put(t, filepath.Join(tree, "noname"), keyfile.EncodeCertificates(old.cert), 0o644)
	put(t, filepath.Join(tree, "own.key"), keyPEM(t, o.leaf.key), 0o600)
	put(t, filepath.Join(tree, "broken.pem"), []byte("-----BEGIN CERTIFICATE-----\nAAAA\n"), 0o644)
	if err := os.Symlink("..", filepath.Join(tree, "up")); err != nil { // a loop
		t.Fatal(err)
	}
	if err := os.Symlink("bundle.pem", filepath.Join(tree, "again.pem")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("self", filepath.Join(tree, "self")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(tree, "fifo.pem"), 0o644); err != nil {
		t.Fatal(err)
	}
	targets, err := Targets([]string{list, filepath.Join(dir, "tree")}, nil, WalkLimits{})
	if err != nil {
		t.Fatal(err)
	}
	result, err := Scan(t.Context(), targets, ScanOptions{Timeout: 20 * time.Second}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][]string{}
	for _, f := range result.Found {
		got[strings.TrimPrefix(whereIs(f), tree+"/")] = f.Problems
	}
	for where, problems := range map[string][]string{
		good: nil, bad: {"wire.times.expired"}, ssh: {"wire.tls.none"}, "127.0.0.1:1": {"wire.connect.refused"}, "again.pem#1": nil, "again.pem#2": nil,
		"noname": {"file.times.expired"}, "server.key": {"file.mode"}, "broken.pem": {"file.format"},
	} {
		has, ok := got[where]
		if !ok || !slices.Equal(has, problems) {
			t.Errorf("%s: %v, not %v", where, has, problems)
		}
	}
	if len(got) != 9 || result.Plain != 1 || result.Closed != 1 {
		t.Errorf("%d found, %d plain, %d closed: %v", len(got), result.Plain, result.Closed, got)
	}
	for i := 1; i < len(result.Found); i++ {
		a, b := result.Found[i-1].NotAfter, result.Found[i].NotAfter
		if !b.IsZero() && (a.IsZero() || b.Before(a)) {
			t.Error("they are not in the order of their ends")
		}
	}
}

func whereIs(f Found) string {
	if f.Number == 0 {
		return f.Where
	}
	return f.Where + "#" + string(rune('0'+f.Number))
}

func TestTargets(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	certificate := put(t, filepath.Join(dir, "c.pem"), keyfile.EncodeCertificates(issue(t, nil, "x", ca).cert), 0o644)
	for _, c := range []struct {
		words, ports []string
		n            int
	}{
		{[]string{"127.0.0.0/30"}, []string{"443", "8443-8445"}, 16},
		{[]string{"127.0.0.7"}, nil, len(DefaultPorts())},
		{[]string{"127.0.0.1:443,9000-9010"}, nil, 12},
		{[]string{"[::1]:443"}, nil, 1},
		{[]string{"::1"}, []string{"443"}, 1},
		{[]string{"web1:443", "web1:443"}, nil, 1},
		{[]string{"127.0.0.0/16"}, []string{"443"}, 65536},
		{[]string{certificate}, nil, 1},
	} {
		got, err := Targets(c.words, c.ports, WalkLimits{})
		if err != nil || len(got) != c.n {
			t.Errorf("%v: %d targets, %v", c.words, len(got), err)
		}
	}
	put(t, filepath.Join(dir, "bad"), []byte("web1:443\nweb2\n"), 0o644)
	put(t, filepath.Join(dir, "none"), []byte("# nothing\n"), 0o644)
	for word, kind := range map[string]fault.Kind{
		"127.0.0.0/15": fault.TooLarge, "10.0.0.0/8": fault.TooLarge, "::/0": fault.TooLarge, "host": fault.Invalid, "host:": fault.Invalid, "host:0": fault.Invalid,
		"host:70000": fault.Invalid, "host:9-1": fault.Invalid, "a:b:1": fault.Invalid, "[::1:443": fault.Invalid, "http://x/:1": fault.Invalid,
		filepath.Join(dir, "bad"): fault.Invalid, filepath.Join(dir, "none"): fault.Invalid, "/dev/null": fault.Invalid,
	} {
		if _, err := Targets([]string{word}, []string{"443"}, WalkLimits{}); !fault.Is(err, kind) {
			t.Errorf("%s: %v", word, err)
		}
	}
	if _, err := Targets([]string{"127.0.0.0/24", "127.1.0.0/16"}, []string{"443"}, WalkLimits{}); !fault.Is(err, fault.TooLarge) {
		t.Errorf("the sum is not bounded: %v", err)
	}
}

func TestWalkIsBounded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	deep := dir
	for range 6 {
		deep = filepath.Join(deep, "d")
	}
	if err := os.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	pem := keyfile.EncodeCertificates(issue(t, nil, "x", ca).cert)
	put(t, filepath.Join(deep, "c.pem"), pem, 0o644)
	put(t, filepath.Join(dir, "c.pem"), pem, 0o644)
	put(t, filepath.Join(dir, "large.pem"), make([]byte, 5000), 0o644)
	got, err := Walk(dir, WalkLimits{Depth: 3, Size: 4000})
	if err != nil || len(got) != 3 {
		t.Fatalf("%v, %v", got, err)
	}
	failed := 0
	for _, g := range got {
		if g.Err != nil {
			failed++
		}
	}
	if failed != 2 { // what is too deep, and what is too large, are named
		t.Errorf("%v", got)
	}
	if _, err := Walk(dir, WalkLimits{Files: 1}); !fault.Is(err, fault.TooLarge) {
		t.Errorf("%v", err)
	}
	if got, err := Walk(dir, WalkLimits{}); err != nil || len(got) != 3 {
		t.Errorf("%v, %v", got, err)
	}
}

// FuzzRead has no key store among its seeds: to open one takes as long as whoever made it wants, and their parsers are fuzzed
// where they are. A file of whatever bytes is read without a panic, and what is told of it may go to a terminal.
func FuzzRead(f *testing.F) {
	o := newOffice(f)
	for _, seed := range [][]byte{nil, o.leaf.cert.Raw, keyfile.EncodeCertificates(o.leaf.path...), keyPEM(f, o.leaf.key), []byte("-----BEGIN X509 CRL-----\n\x1b[2J"), {0x30, 0x80, 2, 1, 3}, {0xfe, 0xed, 0xfe, 0xed, 0, 0, 0, 2}} {
		f.Add(seed)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text []byte) {
		text = bytes.ReplaceAll(text, []byte("%!"), []byte("%.")) // as our own mistakes in formats look, which note looks for
		held, err := Read(text, []byte("x"))
		if err == nil && held == nil {
			t.Fatal("neither something nor an error")
		}
		path := put(t, filepath.Join(dir, "f"), text, 0o600)
		found, err := File(t.Context(), path, FileOptions{Password: []byte("x")}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		note(t, found)
	})
}

// FuzzWhatAnswers: whatever a port says first has a name that may go to a terminal.
func FuzzWhatAnswers(f *testing.F) {
	f.Fuzz(func(t *testing.T, head []byte) {
		what, _ := whatAnswers(head)
		if what == "" || len(what) > 400 || strings.ContainsFunc(what, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\u202e' }) {
			t.Fatalf("%q is %q", head, what)
		}
	})
}

// FuzzTargets: no word makes more targets than the limit, and none is outside of what was asked.
func FuzzTargets(f *testing.F) {
	f.Fuzz(func(t *testing.T, word string) {
		if _, err := os.Stat(word); err == nil || strings.ContainsAny(word, "\x00") {
			return // no files here
		}
		got, err := Targets([]string{word}, []string{"443"}, WalkLimits{})
		if err == nil && (len(got) == 0 || len(got) > MostPorts) {
			t.Fatalf("%q: %d", word, len(got))
		}
		prefix, none := netip.ParsePrefix(word)
		for _, g := range got {
			host, _, err := net.SplitHostPort(g.Address)
			if err != nil {
				t.Fatal(err)
			}
			if address, err := netip.ParseAddr(host); none == nil && (err != nil || !prefix.Contains(address)) {
				t.Fatalf("%q: %s", word, g.Address)
			}
		}
	})
}
