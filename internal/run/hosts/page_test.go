package hosts_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"chancery/internal/run/consumer"
)

// block is a fenced block of a page. Its first line says what it is: "sh MACHINE" is typed there; with "fails" behind it it
// must fail, with "again" it is typed until it prints what it should. "ini MACHINE FILE" is written to a file. "text" is what
// the block before prints, where … stands for anything, and alone on a line for any number of lines.
type block struct {
	words []string
	text  string
	line  int
}

func blocksOf(t *testing.T, page string) (blocks []block) {
	t.Helper()
	text, err := os.ReadFile(page)
	must(t, err)
	var open *block
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		switch fence, is := strings.CutPrefix(strings.TrimSpace(line), "```"); {
		case is && open == nil:
			open = &block{words: strings.Fields(fence), line: n}
		case is:
			blocks, open = append(blocks, *open), nil
		case open != nil:
			open.text += line
		}
	}
	return blocks
}

// TestLibvirtPage types docs/libvirt.md, word by word, on three machines. What is put in the place of the world: loopback
// addresses for those of the page; an scp that copies between directories; a systemctl that ends libvirtd and starts it
// again, with its test driver alone; a place for the agent's state; and the node, which the page takes as given.
func TestLibvirtPage(t *testing.T) {
	t.Parallel()
	if elseInDirectory(t, (*scene).isAccepted) {
		return
	}
	w := ownWorld(t, "", nil)
	machines := map[string]*host{}
	addresses := map[string]string{"authority": "192.0.2.10", "host1": "192.0.2.11", "host2": "192.0.2.12"}
	for name := range addresses {
		machines[name] = w.newHost(t, name, machine{pool: "virt", plainName: true, groups: []string{"libvirt-qemu"}})
	}
	var real, printed []string
	for name, address := range addresses {
		real, printed = append(real, address, machines[name].at), append(printed, machines[name].at, address)
	}
	for _, m := range machines {
		m.furnish(machines)
	}
	blocks := blocksOf(t, "../../../docs/libvirt.md")
	typed, compared := 0, 0
	for i, b := range blocks {
		text := strings.NewReplacer(real...).Replace(b.text)
		switch b.words[0] {
		case "sh":
			typed++
			var want *regexp.Regexp
			if i+1 < len(blocks) && blocks[i+1].words[0] == "text" {
				want = patternOf(blocks[i+1].text)
				compared++
			}
			b.typedOn(machines[b.words[1]], text, want, strings.NewReplacer(printed...))
		case "ini":
			m := machines[b.words[1]]
			if path := b.words[2]; filepath.IsAbs(path) {
				m.write(path, text)
			} else {
				must(t, os.WriteFile(filepath.Join(m.home, "root", path), []byte(text), 0o644))
			}
		case "text":
		default:
			t.Errorf("line %d: a block of %q", b.line, b.words)
		}
	}
	if typed < 20 || compared < 15 {
		t.Errorf("%d blocks were typed and %d compared; the page has more", typed, compared)
	}
}

// typedOn types a block on a host and holds what is printed against the page, whose addresses are put back before.
func (b block) typedOn(h *host, text string, want *regexp.Regexp, back *strings.Replacer) {
	h.t.Helper()
	mode := ""
	if len(b.words) > 2 {
		mode = b.words[2]
	}
	late := time.Now().Add(30 * time.Second)
	for {
		out, err := h.shell(text).CombinedOutput()
		said := back.Replace(string(out))
		good := (err == nil) == (mode != "fails") && (want == nil || want.MatchString(plain(said)))
		if good {
			return
		}
		if mode != "again" || time.Now().After(late) {
			h.t.Fatalf("line %d, on %s, ends with %v:\n%s\nIt prints\n%s\nand the page says\n%s", b.line, h.name, err, b.text, said, want)
		}
	}
}

// shell is a script as root of the host types it.
func (h *host) shell(script string) *exec.Cmd {
	cmd := h.command("env", "-C", filepath.Join(h.home, "root"), "sh", "-ec", script)
	cmd.Env = append(cmd.Env, "CHANCERY_DIR="+string(h.world.dir), "CHANCERY_STATE="+h.state, "LC_ALL=C",
		"PATH=/usr/local/sbin:"+filepath.Dir(program(h.t))+":/usr/sbin:/usr/bin:/sbin:/bin")
	return cmd
}

// furnish gives a host what stands for the network and for systemd, and the names of the others.
func (h *host) furnish(machines map[string]*host) {
	h.t.Helper()
	local, copies, known := filepath.Join(h.home, "local"), "", ""
	for name, m := range machines {
		known += m.at + " " + name + "\n"
		copies += fmt.Sprintf("root@%s:) to=%s;;\n", name, filepath.Join(m.home, "root"))
	}
	known += machines["host1"].at + " host1-migration\n"
	must(h.t, os.WriteFile(h.path("/etc/hosts"), []byte(known+"127.0.0.1 localhost\n"), 0o644))
	must(h.t, os.Mkdir(local, 0o755))
	for name, text := range map[string]string{
		"scp": "#!/bin/sh -e\nfor last; do :; done\ncase $last in\n" + copies + "*) exit 1;;\nesac\n" +
			"while [ $# -gt 1 ]; do cp -p \"$1\" \"$to\"; shift; done\n",
		"systemctl": "#!/bin/sh -e\n[ \"$*\" = 'restart libvirtd.service' ]\nif [ -e /run/libvirtd.pid ]; then\n  p=$(cat /run/libvirtd.pid)\n" +
			"  kill $p; while kill -0 $p 2>/dev/null; do sleep 0.05; done\nfi\ntouch /run/libvirtd.wanted\n" +
			"for i in $(seq 200); do virt-admin -q srv-list >/dev/null 2>&1 && exit 0; sleep 0.05; done\ncat /run/libvirtd.out; exit 1\n",
		"libvirtd-always": "#!/bin/sh\nwhile :; do\n  [ -e /run/libvirtd.wanted ] && LIBVIRT_DRIVER_DIR=/opt/drivers " +
			"setpriv --pdeathsig KILL libvirtd --listen -p /run/libvirtd.pid >/run/libvirtd.out 2>&1\n  sleep 0.05\ndone\n",
	} {
		must(h.t, os.WriteFile(filepath.Join(local, name), []byte(text), 0o755))
	}
	h.write("/opt/drivers/none", "")
	h.run("mount", "--bind", local, "/usr/local/sbin")
	h.start(consumer.Program{Path: "/usr/local/sbin/libvirtd-always"})
}

var blanks = regexp.MustCompile(`[ \t]+`)

// plain is a text with one blank where there are several, and none at the ends of lines.
func plain(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(strings.TrimSpace(blanks.ReplaceAllString(line, " ")) + "\n")
	}
	return b.String()
}

// patternOf is what matches a page's word on what is printed.
func patternOf(text string) *regexp.Regexp {
	var b strings.Builder
	b.WriteString(`\A`)
	for line := range strings.Lines(plain(text)) {
		if line == "…\n" {
			b.WriteString(`(?:.*\n)*`)
			continue
		}
		b.WriteString(strings.ReplaceAll(regexp.QuoteMeta(line), "…", `.*`))
	}
	b.WriteString(`\z`)
	return regexp.MustCompile(b.String())
}
