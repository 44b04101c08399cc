package demo

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"chancery/internal/agent/probe"
)

// The first word makes this test binary one of the processes of a story.
const (
	wordStory    = "story"
	wordConsumer = "consumer"
	wordReadable = "readable"
)

func TestMain(m *testing.M) {
	if len(os.Args) < 2 {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	switch os.Args[1] {
	case wordStory:
		err = Run(ctx, options(os.Stdout, len(os.Args) > 2))
	case wordConsumer:
		err = Consumer(ctx, os.Args[2:])
	case wordReadable:
		os.Exit(probe.ReadableMain(os.Args[2:]))
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func options(out io.Writer, stay bool) Options {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return Options{Out: out, Stay: stay, Version: "test", Program: []string{self, wordConsumer}, Readable: []string{self, wordReadable}}
}

// sentences are of every chapter; the consumers do not matter.
var sentences = []string{
	"OCSP says good", "lists it after", "/etc/pki/libvirt/private/serverkey.pem  0600", "/etc/nginx/tls/server.pem", "/etc/postgresql/tls/root.crl",
	"its libvirt-client certificate  is let in", "web1's server certificate       refused: ", "app, a client of its pool       is let in",
	"for clients only", "The download goes on", "seen on the live port", " app is refused", "app is let in again", "certificates.audit", "All was as told",
}

func holds(t *testing.T, text string, more ...string) {
	t.Helper()
	for _, sentence := range append(more, sentences...) {
		if !strings.Contains(text, sentence) {
			t.Errorf("the story lacks %q", sentence)
		}
	}
	for line := range strings.Lines(text) {
		if strings.HasSuffix(line, " \n") || len(line) > 170 {
			t.Errorf("a line is not fit to be seen: %q", line)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

// changing are what no two stories have in common.
var changing = []struct {
	what *regexp.Regexp
	word string
}{
	{regexp.MustCompile(`[0-9a-f]{8}…`), "SERIAL"},
	{regexp.MustCompile(`127\.0\.0\.1:[0-9]+`), "ADDRESS"},
	{regexp.MustCompile(`20[0-9]{2}-[0-9]{2}-[0-9]{2}`), "DATE"},
	{regexp.MustCompile(`CRL [0-9]+`), "CRL N"},
	{regexp.MustCompile(`[0-9.]+m?s\b`), "TIME"},
	{regexp.MustCompile(`/tmp/[^ ]*chancery-demo-[0-9]+`), "DIR"},
	{regexp.MustCompile(`(libvirtd|nginx|PostgreSQL) [0-9.]+`), "$1 V"},
	{regexp.MustCompile(`[0-9]+ (octets|more)`), "N $1"},
	{regexp.MustCompile(` {2,}`), "  "}, // widths of columns
}

func withoutChanging(line string) string {
	for _, c := range changing {
		line = c.what.ReplaceAllString(line, c.word)
	}
	return strings.TrimSpace(line)
}

// pictured holds the picture in README against what is told: each of its lines, in order. A line of … stands for some.
func pictured(t *testing.T, told string) {
	t.Helper()
	readme, err := os.ReadFile("../../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, picture, _ := strings.Cut(string(readme), "```text\nChancery's demo.")
	picture, _, found := strings.Cut("Chancery's demo."+picture, "```")
	if !found || strings.Count(picture, "\n") < 25 {
		t.Fatalf("README has no picture of the story, or a small one:\n%s", picture)
	}
	lines := strings.Split(told, "\n")
	for line := range strings.Lines(picture) {
		want := withoutChanging(line)
		if want == "…" || want == "" {
			continue
		}
		at := slices.IndexFunc(lines, func(l string) bool { return withoutChanging(l) == want })
		if at < 0 {
			t.Errorf("README shows what is not told, or not there: %s", want)
			continue
		}
		lines = lines[at+1:]
	}
}

// TestStory plays it with real consumers, for one whose umask lets nobody else read.
func TestStory(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	var out bytes.Buffer
	if err := Run(t.Context(), options(&out, false)); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	holds(t, out.String(), "libvirtd 9", "nginx 1.", "PostgreSQL 1", "The certificate hasn't got a known issuer", "virsh over TLS lists",
		"refused: tls: revoked certificate")
	pictured(t, out.String())
}

// TestStoryWithoutConsumers plays it on a machine that has none of them.
func TestStoryWithoutConsumers(t *testing.T) {
	var out bytes.Buffer
	o := options(&out, false)
	o.Installed = func(context.Context, string) (string, error) { return "", errors.New("not in PATH") }
	if err := Run(t.Context(), o); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	holds(t, out.String(), "a stand-in for libvirtd", "a stand-in for nginx", "a stand-in for PostgreSQL",
		"Not installed here: libvirtd, nginx, PostgreSQL.")
}

// nobody is the number of the user and of the group.
const nobody = 65534

// TestStoryAsAnotherUser plays it as one who is not root, whoever runs the test, and ends it by an interrupt while it stays.
// Nothing is left: no directory, and no process.
func TestStoryAsAnotherUser(t *testing.T) {
	dir, err := os.MkdirTemp("", "demo-") // short, for the sake of sockets
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "story.test")
	text, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = errors.Join(os.WriteFile(program, text, 0o755), os.Chmod(program, 0o755), os.Chmod(dir, 0o755))
	}
	if err == nil && os.Geteuid() == 0 {
		err = os.Chown(dir, nobody, nobody)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, wordStory, "and stay")
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=/nonexistent", "TMPDIR=" + dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	var wrong bytes.Buffer
	cmd.Stderr = &wrong
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var told strings.Builder
	var running []string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		told.WriteString(lines.Text() + "\n")
		if strings.Contains(lines.Text(), "chancery status") { // the last of what there is to see
			running = below(t, cmd.Process.Pid)
			if err := cmd.Process.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %s\n%s", err, wrong.String(), told.String())
	}
	holds(t, told.String(), "libvirtd 9", "nginx 1.", "PostgreSQL 1", "Everything runs until you press Ctrl-C", "chancery agent status --state "+dir)
	if len(running) < 3 {
		t.Errorf("while it stayed it had the processes %q; the check of what is left would prove little", running)
	}
	for _, pid := range running {
		if _, err := os.Stat("/proc/" + pid); err == nil {
			t.Errorf("process %s is left", pid)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "chancery-*")); len(left) > 0 {
		t.Errorf("%q are left", left)
	}
}

// below are the processes that a process has started, and those that these have.
func below(t *testing.T, pid int) (all []string) {
	t.Helper()
	parents := map[string]string{}
	entries, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		text, err := os.ReadFile(entry)
		if err != nil {
			continue // it has ended
		}
		after := string(text[bytes.LastIndexByte(text, ')')+1:])
		parents[filepath.Base(filepath.Dir(entry))] = strings.Fields(after)[1]
	}
	for child := range parents {
		for p := parents[child]; p != ""; p = parents[p] {
			if p == strconv.Itoa(pid) {
				all = append(all, child)
				break
			}
		}
	}
	return all
}
