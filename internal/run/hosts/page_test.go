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

// sectionOf is the blocks below one heading of a page.
func sectionOf(t *testing.T, page, heading string) (blocks []block) {
	t.Helper()
	text, err := os.ReadFile(page)
	must(t, err)
	from, to, fenced := 0, 0, false
	for n, line := range strings.Split(string(text), "\n") {
		if strings.HasPrefix(line, "```") {
			fenced = !fenced
		}
		switch {
		case line == heading:
			from = n + 1
		case from > 0 && to == 0 && !fenced && strings.HasPrefix(line, "#"):
			to = n + 1
		}
	}
	for _, b := range blocksOf(t, page) {
		if from > 0 && b.line > from && (to == 0 || b.line < to) {
			blocks = append(blocks, b)
		}
	}
	if len(blocks) == 0 {
		t.Fatalf("%s has nothing to type below %q", page, heading)
	}
	return blocks
}

// stage is the machines of a page. What is put in the place of the world: loopback addresses for those of the page; an scp that
// copies between directories; a systemctl for the units that the page has run; and a place for the agents' state.
type stage struct {
	t         *testing.T
	machines  map[string]*host
	addresses map[string]string // as the page has them, by machine
	aliases   map[string]string // more names, and whose machine they lead to
	units     map[string]unit
	words     map[string]string // of the page, and what stands in their place
}

// unit is what systemctl starts and stops.
type unit struct {
	run   string // a command of the shell, which stays in the foreground
	ready string // succeeds once it answers
}

// newStage makes the machines.
func newStage(t *testing.T, w *world, addresses map[string]string, m machine, units map[string]unit) *stage {
	t.Helper()
	s := &stage{t: t, machines: map[string]*host{}, addresses: addresses, aliases: map[string]string{}, units: units}
	m.plainName = true
	for name := range addresses {
		s.machines[name] = w.newHost(t, name, m)
	}
	return s
}

// replaced is what stands in the place of the page's addresses and words, and what is put back into what is printed.
func (s *stage) replaced() (real, printed []string) {
	for name, address := range s.addresses {
		real, printed = append(real, address, s.machines[name].at), append(printed, s.machines[name].at, address)
	}
	for word, instead := range s.words {
		real, printed = append(real, word, instead), append(printed, instead, word)
	}
	return real, printed
}

// play types a page, word by word, and wants that it has that many blocks to type and to compare.
func (s *stage) play(page string, types, compares int) {
	s.t.Helper()
	for _, m := range s.machines {
		s.furnish(m)
	}
	s.typeBlocks(blocksOf(s.t, page), types, compares)
}

// typeBlocks types blocks on machines that are furnished.
func (s *stage) typeBlocks(blocks []block, types, compares int) {
	s.t.Helper()
	real, printed := s.replaced()
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
			b.typedOn(s.machines[b.words[1]], text, want, strings.NewReplacer(printed...))
		case "ini":
			m := s.machines[b.words[1]]
			if path := b.words[2]; filepath.IsAbs(path) {
				m.write(path, text)
			} else {
				must(s.t, os.WriteFile(filepath.Join(m.home, "root", path), []byte(text), 0o644))
			}
		case "text":
		default:
			s.t.Errorf("line %d: a block of %q", b.line, b.words)
		}
	}
	if typed < types || compared < compares {
		s.t.Errorf("%d blocks were typed and %d compared; the page has more", typed, compared)
	}
}

// TestLibvirtPage types docs/libvirt.md on three machines. Its libvirtd has its test driver alone; the page takes the node as given.
func TestLibvirtPage(t *testing.T) {
	t.Parallel()
	if elseInDirectory(t, (*scene).isAccepted) {
		return
	}
	s := newStage(t, ownWorld(t, "", nil), map[string]string{"authority": "192.0.2.10", "host1": "192.0.2.11", "host2": "192.0.2.12"},
		machine{groups: []string{"libvirt-qemu"}},
		map[string]unit{"libvirtd": {
			run:   "env LIBVIRT_DRIVER_DIR=/opt/drivers setpriv --pdeathsig KILL libvirtd --listen -p /run/libvirtd.pid",
			ready: "virt-admin -q srv-list",
		}})
	s.aliases["host1-migration"] = "host1"
	for _, m := range s.machines {
		m.write("/opt/drivers/none", "")
	}
	s.play("../../../docs/libvirt.md", 20, 15)
}

// typedOn types a block on a host and holds what is printed against the page, whose addresses are put back before.
func (b block) typedOn(h *host, text string, want *regexp.Regexp, back *strings.Replacer) {
	h.t.Helper()
	mode := ""
	if len(b.words) > 2 {
		mode = b.words[2]
	}
	late := time.Now().Add(2 * time.Minute)
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		out, err := h.shell(text).CombinedOutput()
		said := back.Replace(string(out))
		good := (err == nil) == (mode != "fails") && (want == nil || want.MatchString(plain(said)))
		if good {
			h.t.Logf("line %d, on %s:\n%s\nprints\n%s", b.line, h.name, b.text, said)
			return
		}
		if mode != "again" || time.Now().After(late) {
			h.t.Fatalf("line %d, on %s, ends with %v:\n%s\nIt prints\n%s\nand the page says\n%s", b.line, h.name, err, b.text, said, want)
		}
		time.Sleep(pause)
	}
}

// shell is a script as root of the host types it. It ends before the test would have to.
func (h *host) shell(script string) *exec.Cmd {
	cmd := h.command("env", "-C", filepath.Join(h.home, "root"), "timeout", "240", "sh", "-ec", script)
	cmd.Env = append(cmd.Env, h.typing()...)
	return cmd
}

// typing is the environment of what is typed on a host.
func (h *host) typing() []string {
	where := "CHANCERY_STATE=" + h.state
	if h.name == "authority" {
		where = "CHANCERY_DIR=" + string(h.world.dir)
	}
	return []string{where, "LC_ALL=C",
		"PATH=/usr/local/sbin:" + filepath.Dir(program(h.t)) + ":/usr/sbin:/usr/bin:/sbin:/bin"}
}

// furnish gives a host what stands for the network and for systemd, and the names of the others.
func (s *stage) furnish(h *host) {
	s.t.Helper()
	local, copies, known := filepath.Join(h.home, "local"), "", ""
	for name, m := range s.machines {
		known += m.at + " " + name + "\n"
		copies += fmt.Sprintf("root@%s:) to=%s;;\n", name, filepath.Join(m.home, "root"))
	}
	for name, whose := range s.aliases {
		known += s.machines[whose].at + " " + name + "\n"
	}
	must(s.t, os.WriteFile(h.path("/etc/hosts"), []byte(known+"127.0.0.1 localhost\n"), 0o644))
	must(s.t, os.Mkdir(local, 0o755))
	scripts := map[string]string{
		"scp": "#!/bin/sh -e\nfor last; do :; done\ncase $last in\n" + copies + "*) exit 1;;\nesac\n" +
			"while [ $# -gt 1 ]; do cp -p \"$1\" \"$to\"; shift; done\n",
	}
	ready := ""
	for name, u := range s.units {
		ready += name + ") ready='" + u.ready + "';;\n"
		scripts["always-"+name] = "#!/bin/sh\nname=" + name + "\nrun() { exec " + u.run + "; }\n" + always
	}
	scripts["systemctl"] = "#!/bin/sh -e\nverb=$1 name=${2%.service}\n" + showUnit + "case $name in\n" + ready + "*) exit 5;;\nesac\n" + systemctl
	for name, text := range scripts {
		must(s.t, os.WriteFile(filepath.Join(local, name), []byte(text), 0o755))
	}
	h.run("mount", "--bind", local, "/usr/local/sbin")
	for name := range s.units {
		h.start(consumer.Program{Path: "/usr/local/sbin/always-" + name, Env: h.typing()})
	}
}

// always runs a unit while it is wanted, and ends it with itself. It looks often at first, when it may be restarted, and then each second.
const always = `trap 'kill $p 2>/dev/null; wait; exit 0' TERM
looks=0
while :; do
  if [ -e /run/$name.wanted ]; then
    run >>/run/$name.out 2>&1 &
    p=$!
    echo $p >/run/$name.main
    wait $p
    rm -f /run/$name.main
    looks=0
  fi
  looks=$((looks+1)) pause=1
  [ $looks -gt 10 ] || pause=0.2
  sleep $pause &
  p=$!
  wait $p
done
`

// showUnit says of a unit what an agent asks systemd.
const showUnit = `if [ $verb = show ]; then
  for name; do :; done
  name=${name%.service}
  echo LoadState=loaded
  [ -e /run/$name.wanted ] && echo ActiveState=active || echo ActiveState=inactive
  exit 0
fi
`

// systemctl starts, stops and restarts a unit, and returns when it answers or is gone.
const systemctl = `case $verb in
start|stop|restart) ;;
try-restart) [ -e /run/$name.wanted ] || exit 0;;
*) exit 1;;
esac
if [ $verb != start ]; then
  rm -f /run/$name.wanted
  if p=$(cat /run/$name.main 2>/dev/null); then
    kill $p 2>/dev/null || :
    while [ -e /run/$name.main ]; do sleep 0.05; done
  fi
fi
[ $verb = stop ] && exit 0
touch /run/$name.wanted
for i in $(seq 1200); do sh -c "$ready" >/dev/null 2>&1 && exit 0; sleep 0.1; done
cat /run/$name.out
exit 1
`

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
