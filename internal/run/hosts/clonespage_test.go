package hosts_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"chancery/internal/pkitest"
	"chancery/internal/run/consumer"
)

// desk is where the pages about nodes are typed: a directory for each machine, and the nodes that are begun there. A block with "waits"
// behind its machine goes on while others are typed, and must have succeeded when more is typed there; one that "stays" is a node.
type desk struct {
	t       *testing.T
	home    string
	words   []string // of the page, and what stands in their place
	printed []string // the other way round
	begun   map[string]*consumer.Process
}

// TestClonesPages types docs/clones.md and docs/from-rhcs.md, whose every command that stands in a block is typed. One PostgreSQL is
// under both, where there is a pool database.
func TestClonesPages(t *testing.T) {
	t.Parallel()
	program(t) // before anything is started beside: a file that is written while others are forked is busy for a while
	n := &nodes{whole: t, store: single{pkitest.Postgres(t, "fsync=off")}, all: map[string]*member{}}
	n.begin(t)
	n.certified(t)
	n.join(t, "node1", "node3", 0, "ocsp")
	d := &desk{t: t, home: t.TempDir(), begun: map[string]*consumer.Process{}}
	one, url := n.all["node1"], strings.TrimSpace(string(read(t, n.url)))
	_, port, _ := strings.Cut(one.api, ":")
	for _, name := range []string{"node2", "clone"} {
		at := freeAddress(t)
		_, its, _ := strings.Cut(at, ":")
		must(t, os.Mkdir(filepath.Join(d.home, name), 0o700))
		must(t, os.WriteFile(filepath.Join(d.home, name, "database-url"), []byte(url+"\n"), 0o600))
		d.stands("https://"+name+".example:8443", "https://localhost:"+its)
		d.words = append(d.words, "--listen "+name+":8443 --public-listen "+name+":8080",
			"--listen "+at+" --public-listen "+freeAddress(t)+" --metrics-listen "+freeAddress(t))
	}
	for _, name := range []string{"node1", "master"} {
		must(t, os.Mkdir(filepath.Join(d.home, name), 0o700))
		d.words = append(d.words, "https://"+name+".example:8443", "https://localhost:"+port)
	}
	must(t, os.WriteFile(filepath.Join(d.home, "master", "p12-password"), []byte(passphrase+"\n"), 0o600))
	// One user types, who is the node's as well.
	d.words = append(d.words, "sudo -u chancery ", "", "-o chancery -g chancery ", "", "--wait 1m", "--wait 5m", "/var/lib/chancery", "data")
	d.furnish(string(n.first.dir))
	d.play("../../../docs/clones.md", 11, 4)
	d.play("../../../docs/from-rhcs.md", 9, 1)
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	text, err := os.ReadFile(file)
	must(t, err)
	return text
}

// stands has something stand in the place of a word, and the word again in what is printed.
func (d *desk) stands(word, instead string) {
	d.words, d.printed = append(d.words, word, instead), append(d.printed, instead, word)
}

// furnish gives all machines the program and an scp, and the administrator's the credential.
func (d *desk) furnish(dir string) {
	d.t.Helper()
	must(d.t, os.Mkdir(filepath.Join(d.home, "bin"), 0o755))
	scp := "#!/bin/sh -e\nto=${2#root@}; cp -p \"$1\" \"" + d.home + "/${to%.example:}/\"\n"
	must(d.t, os.WriteFile(filepath.Join(d.home, "bin", "scp"), []byte(scp), 0o755))
	for _, name := range []string{"node1", "master"} {
		must(d.t, os.WriteFile(filepath.Join(d.home, name, ".dir"), []byte(dir), 0o644))
	}
}

// shell is a script as it is typed on a machine.
func (d *desk) shell(machine, script string) (args, env []string) {
	env = []string{"LC_ALL=C", "PATH=" + filepath.Join(d.home, "bin") + ":" + filepath.Dir(program(d.t)) + ":" + os.Getenv("PATH")}
	if dir, err := os.ReadFile(filepath.Join(d.home, machine, ".dir")); err == nil {
		env = append(env, "CHANCERY_DIR="+string(dir))
	}
	return []string{"-ec", script}, env
}

// play types a page, and wants that it has that many blocks to type and to compare, and no block that is neither.
func (d *desk) play(page string, types, compares int) {
	d.t.Helper()
	blocks := blocksOf(d.t, page)
	typed, compared := 0, 0
	for i, b := range blocks {
		switch b.words[0] {
		case "sh":
			typed++
			var want *regexp.Regexp
			if i+1 < len(blocks) && blocks[i+1].words[0] == "text" {
				want = patternOf(blocks[i+1].text)
				compared++
			}
			d.typed(b, want)
		case "text":
			if i == 0 || blocks[i-1].words[0] != "sh" {
				d.t.Errorf("%s: what the block in line %d shows is printed by none", page, b.line)
			}
		default:
			d.t.Errorf("%s: line %d: a block of %q", page, b.line, b.words)
		}
	}
	if typed < types || compared < compares {
		d.t.Errorf("%s: %d blocks were typed and %d compared; the page has more", page, typed, compared)
	}
}

// typed types one block.
func (d *desk) typed(b block, want *regexp.Regexp) {
	d.t.Helper()
	machine, mode := b.words[1], ""
	if len(b.words) > 2 {
		mode = b.words[2]
	}
	if p := d.begun[machine]; p != nil {
		select {
		case <-p.Done():
		case <-time.After(2 * time.Minute):
			d.t.Fatalf("line %d: what was begun on %s before does not end:\n%s", b.line, machine, p.Output())
		}
		delete(d.begun, machine)
	}
	text := strings.NewReplacer(d.words...).Replace(b.text)
	args, env := d.shell(machine, text)
	if mode == "waits" || mode == "stays" {
		d.begins(b, machine, mode, args, env, want)
		return
	}
	cmd := exec.Command("sh", args...)
	cmd.Dir, cmd.Env = filepath.Join(d.home, machine), append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	d.judge(b, string(out), err, mode == "fails", want)
}

func (d *desk) judge(b block, out string, err error, fails bool, want *regexp.Regexp) {
	d.t.Helper()
	said := strings.NewReplacer(d.printed...).Replace(out)
	if (err == nil) == fails || want != nil && !want.MatchString(plain(said)) {
		d.t.Fatalf("line %d, on %s, ends with %v:\n%s\nIt prints\n%s\nand the page says\n%s", b.line, b.words[1], err, b.text, said, want)
	}
	d.t.Logf("line %d, on %s:\n%s\nprints\n%s", b.line, b.words[1], b.text, said)
}

// begins starts what does not end by itself, and waits until it says what the page says.
func (d *desk) begins(b block, machine, mode string, args, env []string, want *regexp.Regexp) {
	d.t.Helper()
	p, err := consumer.Start(context.Background(), consumer.Program{Path: "sh", Args: append([]string{"-ec", "exec " + strings.TrimSpace(args[1])}, args[2:]...),
		Dir: filepath.Join(d.home, machine), Env: env})
	must(d.t, err)
	d.t.Cleanup(func() { must(d.t, p.Stop()) })
	if mode == "stays" {
		return // clone status, which is typed next, waits for it
	}
	d.begun[machine] = p
	until(d.t, fmt.Sprintf("what is typed in line %d says what the page says", b.line), func() bool {
		select {
		case <-p.Done():
			d.t.Fatalf("line %d ended with\n%s", b.line, p.Output())
		default:
		}
		return approval.MatchString(p.Output() + "\n")
	})
	shown := approval.FindStringSubmatch(p.Output() + "\n")
	d.words = append([]string{"FINGERPRINT", shown[2]}, d.words...)
	d.judge(b, p.Output()+"\n", nil, false, want)
}
