package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"chancery/client"
)

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestSecretFiles: whatever stands where a secret should, the reader ends, with little in memory, and says what would do.
func TestSecretFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	at := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	fifo, link := filepath.Join(dir, "fifo"), filepath.Join(dir, "link")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(at("target", "secret\n"), link); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		file, in, want, refused string
	}{
		"a line":         {file: at("line", "correct horse\r\n"), want: "correct horse"},
		"a link":         {file: link, want: "secret"},
		"standard input": {file: "-", in: "secret\n", want: "secret"},
		"the most":       {file: at("most", strings.Repeat("x", maxSecret)), want: strings.Repeat("x", maxSecret)},
		"more":           {file: at("more", strings.Repeat("x", maxSecret+1)), refused: "more than 4096 octets"},
		"more of input":  {file: "-", in: strings.Repeat("x", maxSecret+1), refused: "more than 4096 octets"},
		"nothing":        {file: at("none", "\n"), refused: "holds nothing"},
		"two lines":      {file: at("two", "a\nb\n"), refused: "2 lines"},
		"a device":       {file: "/dev/zero", refused: "is no regular file"},
		"a pipe":         {file: fifo, refused: "is no regular file"},
		"a directory":    {file: dir, refused: "is no regular file"},
		"absent":         {file: filepath.Join(dir, "absent"), refused: "no such file"},
	} {
		g := &globals{ctx: t.Context(), Streams: Streams{In: strings.NewReader(c.in)}}
		got, err := g.secret(c.file, "password")
		if c.refused == "" && (err != nil || string(got) != c.want) || c.refused != "" && (err == nil || !strings.Contains(err.Error(), c.refused)) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	for _, file := range []string{fifo, "/dev/zero"} {
		g := &globals{ctx: t.Context()}
		if _, err := g.key(file); err == nil || !strings.Contains(err.Error(), "is no regular file") {
			t.Errorf("a key from %s: %v", file, err)
		}
	}
}

// TestInputEnds: endless input is refused, and input that does not come ends with the command.
func TestInputEnds(t *testing.T) {
	t.Parallel()
	g := &globals{ctx: t.Context(), Streams: Streams{In: zeros{}}}
	if _, err := g.secret("-", "password"); err == nil || !strings.Contains(err.Error(), "more than 4096 octets") {
		t.Errorf("endless input: %v", err)
	}
	in, out := io.Pipe()
	defer out.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	g = &globals{ctx: ctx, Streams: Streams{In: in}}
	if _, err := g.secret("-", "password"); !errors.Is(err, context.Canceled) {
		t.Errorf("input that does not come: %v", err)
	}
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := g.readAll(fifo); !errors.Is(err, context.Canceled) {
		t.Errorf("a pipe that nobody writes to: %v", err)
	}
}

// TestTablesAndErrors: no header stands above an error alone, and one does above an empty table.
func TestTablesAndErrors(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	g := &globals{Streams: Streams{Out: &out}}
	row := func(s string) []string { return []string{s} }
	away := errors.New("away")
	if err := list(g, func(yield func(string, error) bool) { yield("", away) }, "NAME", row); !errors.Is(err, away) || out.Len() > 0 {
		t.Errorf("%v: %q", err, &out)
	}
	if err := list(g, values([]string(nil)), "NAME", row); err != nil || out.String() != "NAME\n" {
		t.Errorf("%v: %q", err, &out)
	}
	out.Reset()
	half := func(yield func(string, error) bool) { _ = yield("a", nil) && yield("", away) }
	if err := list(g, half, "NAME", row); !errors.Is(err, away) || out.String() != "NAME\na\n" {
		t.Errorf("%v: %q", err, &out)
	}
}

// TestOutageIsTold: what has ended comes first, and of OCSP it is said that only caches bridge an outage.
func TestOutageIsTold(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	g := &globals{Streams: Streams{Out: &out}}
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	b := client.OutageBudget{
		Seconds: 7200, OCSP: &client.OutageOCSP{Caches: now.Add(12 * time.Hour)},
		Ended: []client.OutageEnd{{Kind: "published CRL", What: "the CRL of issuer lab", At: now.Add(-time.Hour)}},
		Ends:  []client.OutageEnd{{Kind: "published delta CRL", What: "the delta CRL of issuer web", At: now.Add(2 * time.Hour)}},
	}
	g.ended(b)
	if err := g.outage(b); err != nil {
		t.Fatal(err)
	}
	got := out.String()
	for _, words := range []string{
		"ENDED: the CRL of issuer lab, on 2026-05-01T11:00:00Z\ncould be down for 2h 0m: then the delta CRL of issuer web ends\n",
		"new OCSP questions: at once; answers in caches: until 2026-05-02T00:00:00Z\n",
	} {
		if !strings.Contains(got, words) {
			t.Errorf("%q is not told:\n%s", words, got)
		}
	}
	if !strings.HasPrefix(got, "ENDED: ") || strings.Contains(got, "\x1b") {
		t.Errorf("not first, or colours where there is no terminal:\n%s", got)
	}
}
