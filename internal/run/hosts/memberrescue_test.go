package hosts_test

import (
	"archive/tar"
	"bufio"
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"chancery/internal/pki/keyfile"
)

// What TestRescuePage tries between the blocks of the page: chancery-member-rescue with what it must refuse, typed twice, and cut.

// reaches gives a machine an ssh. One carries a socket: here the other machine's file is seen by a link. The others run a command there, of
// which, as with ssh, a shell makes words once more.
func (e *ended) reaches(from *host) {
	t := e.t
	t.Helper()
	var there strings.Builder
	for name := range e.members {
		h := e.s.machines[name]
		words := h.vector("env", "-i", "-C", filepath.Join(h.home, "root"))
		for _, word := range append(append(words, h.env...), h.typing()...) {
			if strings.ContainsAny(word, "' \n") {
				t.Fatalf("%q would want more quotes", word)
			}
		}
		fmt.Fprintf(&there, "root@%s) shift; exec %s sh -c \"$*\";;\n", name, strings.Join(append(append(words, h.env...), h.typing()...), " "))
	}
	db1 := e.s.machines["db1"]
	must(t, os.WriteFile(filepath.Join(from.home, "local", "ssh"), []byte("#!/bin/sh -e\ncase $1 in\n"+there.String()+"-fNM) ;;\n-S) exit 0;;\n*) exit 255;;\nesac\n"+
		"while [ $# -gt 1 ]; do [ $1 = -L ] && map=$2; shift; done\n[ $1 = root@db1 ]\nln -s "+db1.home+"${map#*:} ${map%%:*}\n"), 0o755))
}

// rescue is chancery-member-rescue on a member.
func (e *ended) rescue(member string, args ...string) *exec.Cmd {
	return e.s.machines[member].shell("chancery-member-rescue " + strings.Join(args, " "))
}

// refuses wants a command to be refused as such, with exit status 1.
func (e *ended) refuses(cmd *exec.Cmd, text string) {
	e.t.Helper()
	fails(e.t, cmd, text)
	if code := cmd.ProcessState.ExitCode(); code != 1 {
		e.t.Errorf("%s ends with %d", strings.Join(cmd.Args, " "), code)
	}
}

func (e *ended) before() {
	e.t.Helper()
	for _, wrong := range [][]string{{}, {"promote"}, {"look", "now"}, {"install"}, {"install", "a", "b"}, {"start", "db1"}, {"stand-down", "x"}} {
		cmd := e.rescue("db1", wrong...)
		fails(e.t, cmd, "usage: look")
		if code := cmd.ProcessState.ExitCode(); code != 2 {
			e.t.Errorf("%v ends with %d", wrong, code)
		}
	}
	e.refuses(e.rescue("db1", "lead", "db2:1:1:0/1"), "no PostgreSQL runs here that look has started")
	e.refuses(e.rescue("db1", "start"), "certificates have ended")
	e.refuses(e.s.machines["db1"].shell("setpriv --reuid postgres --clear-groups chancery-member-rescue look"), "root alone may do this")
	db1 := e.s.machines["db1"]
	config := string(db1.read("/etc/patroni/patroni.yml"))
	db1.write("/etc/patroni/patroni.yml", strings.Replace(config, "name: db1 ", "name: $(id) ", 1))
	e.refuses(e.rescue("db1", "look"), "no single plain value of name")
	db1.write("/etc/patroni/patroni.yml", config)

	// A PostgreSQL that somebody else has started is left alone, and said; nothing that look began is in the way then.
	data, socket := "/opt/postgresql/15/chancery", "-o \"-c listen_addresses='' -c unix_socket_directories=/run/postgresql -c ssl=off\""
	e.s.types("db3", "systemctl stop patroni\ncd /\nrunuser -u postgres -- touch "+data+"/standby.signal\nrunuser -u postgres -- "+postgresPrograms+"pg_ctl -D "+data+
		" -s -w -l /run/postgresql/other.log "+socket+" start")
	e.refuses(e.rescue("db3", "look"), "that this did not start")
	e.refuses(e.rescue("db3", "stand-down"), "that this did not start")
	e.s.types("db3", "cd /\nrunuser -u postgres -- "+postgresPrograms+"pg_ctl -D "+data+" -s -w -m fast stop")

	// What is begun on a member is given up, and begun again.
	output(e.t, e.rescue("db3", "look"))
	output(e.t, e.rescue("db3", "stand-down"))
	output(e.t, e.rescue("db3", "stand-down"))
	if _, err := os.Stat(e.s.machines["db3"].path("/run/postgresql/.s.PGSQL.5432")); err == nil {
		e.t.Error("after stand-down PostgreSQL runs")
	}
}

// place is what a member's look prints.
func (e *ended) place(member string) string {
	e.t.Helper()
	return strings.TrimSpace(output(e.t, e.rescue(member, "look")))
}

// fields are those of a place.
func fieldsOf(t *testing.T, place string) (name, system, timeline, at string) {
	t.Helper()
	f := strings.Split(place, ":")
	if len(f) != 4 {
		t.Fatalf("a place is %q", place)
	}
	return f[0], f[1], f[2], f[3]
}

func (e *ended) looked() {
	t := e.t
	t.Helper()
	e.places = map[string]string{}
	for line := range strings.Lines(e.s.types("authority", "cat places")) {
		name, _, _, _ := fieldsOf(t, strings.TrimSpace(line))
		e.places[name] = strings.TrimSpace(line)
	}
	if len(e.places) != 3 {
		t.Fatalf("the members are at %v", e.places)
	}
	for name, at := range e.places {
		if again := e.place(name); again != at {
			t.Errorf("%s is at %s, and then at %s", name, at, again)
		}
		if _, err := os.Stat(e.s.machines[name].path("/opt/chancery-member-rescue/rescue")); err != nil {
			t.Errorf("Patroni of %s may start: %v", name, err)
		}
	}
	p1, p2, p3 := e.places["db1"], e.places["db2"], e.places["db3"]
	_, system, timeline, at := fieldsOf(t, p1)
	for _, c := range []struct {
		says string
		on   string
		args []string
	}{
		{"the place of db2 is not told", "db1", []string{p1}},
		{"the place of db3 is not told", "db1", []string{p1, p2}},
		{"db1 has", "db2", []string{p1, p2, p3}},
		{"db1 has", "db3", []string{p1, p2}},
		{"db2 has more", "db1", []string{p1, "db2:" + system + ":" + timeline + "0:0/0", p3}},
		{"db3 has more", "db1", []string{p1, p2, "db3:" + system + ":" + timeline + ":FFFFFFFF/0"}},
		{"db1 was told to be at", "db1", []string{"db1:" + system + ":" + timeline + ":FFFFFFFF/0", p2, p3}},
		{"is of another cluster", "db1", []string{p2, "db3:1" + system[1:] + "0:" + timeline + ":" + at}},
		{"db2 is said to be at", "db1", []string{p2, "db2:" + system + ":" + timeline + ":0/1", p3}},
		{"is no place of a member", "db1", []string{p2, "'db3:1:1:0/1;id'"}},
		{"is no place of a member", "db1", []string{p2, "'db3:a[$(id)]:1:0/1'"}},
		{"is no place of a member", "db1", []string{p2, p3 + "0000000000"}},
		{"db3 is said to be lost, and to be at", "db1", []string{p2, p3, "--lost", "db3"}},
		{"no member is called 'db4'", "db1", []string{p2, p3, "--lost", "db4"}},
		{"db1 is here, and not lost", "db1", []string{p2, p3, "--lost", "db1"}},
	} {
		e.refuses(e.rescue(c.on, append([]string{"lead"}, c.args...)...), c.says)
	}
	for _, name := range []string{"db1", "db2", "db3"} {
		if at := e.place(name); at != e.places[name] {
			t.Errorf("after refusals %s is at %s", name, at)
		}
	}
}

func (e *ended) leads() {
	t := e.t
	t.Helper()
	all := []string{"lead", e.places["db1"], e.places["db2"], e.places["db3"]}
	now := strings.TrimSpace(output(t, e.rescue("db1", all...)))
	_, _, timeline, _ := fieldsOf(t, now)
	if _, _, before, _ := fieldsOf(t, e.places["db1"]); before == timeline {
		t.Errorf("db1 leads on timeline %s, on which it was", timeline)
	}
	if _, _, again, _ := fieldsOf(t, e.place("db1")); again != timeline {
		t.Errorf("a look has db1 on timeline %s, and not on %s", again, timeline)
	}
	e.refuses(e.rescue("db2", all...), "db1 has")
	e.refuses(e.rescue("db2", "lead", now, e.places["db3"]), "db1 has more")
	e.refuses(e.rescue("db1", "start"), "certificates have ended")
}

// packed is a member's file, entry by entry.
type packed []struct {
	tar.Header
	text []byte
}

func unpack(t *testing.T, text []byte) (p packed) {
	t.Helper()
	r := tar.NewReader(bytes.NewReader(text))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return p
		}
		must(t, err)
		content, err := io.ReadAll(r)
		must(t, err)
		p = append(p, struct {
			tar.Header
			text []byte
		}{*h, content})
	}
}

// with is the file with one entry changed.
func (p packed) with(t *testing.T, entry string, change func(h *tar.Header, text []byte) []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	done := false
	for _, e := range p {
		h, text := e.Header, e.text
		h.Format = tar.FormatUnknown
		if h.Name == entry {
			text, done = change(&h, text), true
			h.Size = int64(len(text))
		}
		must(t, w.WriteHeader(&h))
		_, err := w.Write(text)
		must(t, err)
	}
	must(t, w.Close())
	if !done {
		t.Fatalf("the file has no %s", entry)
	}
	return b.Bytes()
}

// hostile are files that must not be installed on db3, by what is said of them.
func (e *ended) hostile(db3, db2 []byte) map[string]struct {
	file []byte
	says string
} {
	t := e.t
	t.Helper()
	p, other := unpack(t, db3), unpack(t, db2)
	named := func(name string) []byte {
		return p.with(t, "peer.key", func(h *tar.Header, text []byte) []byte { h.Name = name; return text })
	}
	linked := func(kind byte, to string) []byte {
		return p.with(t, "peer.key", func(h *tar.Header, _ []byte) []byte { h.Typeflag, h.Linkname = kind, to; return nil })
	}
	says := func(entry string, text []byte) []byte {
		return p.with(t, entry, func(*tar.Header, []byte) []byte { return text })
	}
	entry := func(p packed, name string) []byte {
		for _, e := range p {
			if e.Name == name {
				return e.text
			}
		}
		t.Fatalf("no %s", name)
		return nil
	}
	foreign, err := keyfile.Generate(keyfile.ECDSAP256, 0)
	must(t, err)
	foreignKey, err := keyfile.EncodePKCS8(foreign)
	must(t, err)
	type one = struct {
		file []byte
		says string
	}
	const exactly, cut = "does not hold exactly", "cut short"
	return map[string]one{
		"another member's":             {db2, `is for the member "db2"`},
		"another's, renamed":           {other.with(t, "member", func(*tar.Header, []byte) []byte { return []byte("db3\n") }), "client.crt is for subject=CN=db2"},
		"empty":                        {nil, exactly},
		"no tar":                       {bytes.Repeat([]byte("x"), 4096), exactly},
		"half":                         {db3[:len(db3)/2], exactly},
		"cut within its last file":     {db3[:len(db3)-1024-700], cut},
		"cut after the first":          {db3[:1024], exactly},
		"too long":                     {append(bytes.Clone(db3), make([]byte, 1<<20)...), "longer than 1 MiB"},
		"a name with ..":               {named("../../../etc/cron.d/x"), exactly},
		"an absolute name":             {named("/etc/cron.d/x"), exactly},
		"a name with a newline":        {named("peer.key\nx"), exactly},
		"the same name twice":          {named("peer.crt"), exactly},
		"a name as of an option":       {named("--to-command=id"), exactly},
		"a symbolic link":              {linked(tar.TypeSymlink, "/etc/shadow"), "a link or a directory"},
		"a hard link":                  {linked(tar.TypeLink, "/etc/shadow"), "a link or a directory"},
		"a hard link within":           {linked(tar.TypeLink, "server.key"), "a link or a directory"},
		"a directory":                  {linked(tar.TypeDir, ""), "a link or a directory"},
		"a FIFO":                       {linked(tar.TypeFifo, ""), "a link or a directory"},
		"an empty entry":               {says("peer.key", nil), "peer.key is empty"},
		"an entry that is long":        {says("roots.crt", bytes.Repeat([]byte("#"), 70<<10)), "longer than 64 KiB"},
		"a key of another certificate": {says("server.key", foreignKey), "server.key is not the key of server.crt"},
		"no key":                       {says("server.key", []byte("x\n")), "server.key is not the key of server.crt"},
		"other roots":                  {says("roots.crt", entry(p, "peer-roots.crt")), "is not good below roots.crt"},
		"ended":                        {e.old(p), "certificate has expired"},
	}
}

// old is db3's file with what db3 has already.
func (e *ended) old(p packed) []byte {
	held := e.members["db3"]
	var file []byte
	for name, text := range map[string][]byte{
		"server.key": held[0].key, "server.crt": held[0].path, "client.key": held[1].key, "client.crt": held[1].path, "roots.crt": held[0].roots,
		"peer.key": held[2].key, "peer.crt": held[2].path, "peer-roots.crt": held[2].roots,
	} {
		file = p.with(e.t, name, func(*tar.Header, []byte) []byte { return text })
		p = unpack(e.t, file)
	}
	return file
}

// holds is what is in the places of a member's files.
func (e *ended) holds(member string) string {
	return e.s.types(member, "cd /etc\nfind postgresql/tls postgresql/client etcd/tls -type f -printf '%p %u:%g %m ' -exec sha256sum '{}' ';' | sort\n"+
		"[ ! -e /etc/chancery-member-rescue ]\n[ ! -e /run/chancery-member-rescue ]")
}

func (e *ended) installs() {
	t := e.t
	t.Helper()
	files := filepath.Join(e.s.machines["authority"].home, "root", "db")
	text := map[string][]byte{}
	for _, name := range []string{"db1", "db2", "db3"} {
		var err error
		text[name], err = os.ReadFile(filepath.Join(files, name+".tar"))
		must(t, err)
		if st, err := os.Stat(filepath.Join(files, name+".tar")); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", st, err)
		}
	}
	before := e.holds("db3")
	tried := 0
	for what, c := range e.hostile(text["db3"], text["db2"]) {
		cmd := e.rescue("db3", "install", "-")
		cmd.Stdin = bytes.NewReader(c.file)
		out, err := cmd.CombinedOutput()
		if err == nil || cmd.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), c.says) || !strings.Contains(string(out), "what passes: ") {
			t.Errorf("%s is installed with %v, and not refused with %q:\n%s", what, err, c.says, out)
		}
		tried++
	}
	if tried < 20 {
		t.Errorf("%d files were tried", tried)
	}
	db3 := e.s.machines["db3"]
	at := filepath.Join(db3.home, "root", "db3.tar")
	must(t, os.WriteFile(at, text["db3"], 0o600))
	must(t, os.Chmod(at, 0o640))
	e.refuses(e.rescue("db3", "install", "db3.tar"), "others may read")
	must(t, os.Chmod(at, 0o600))
	must(t, os.Symlink("db3.tar", filepath.Join(db3.home, "root", "link.tar")))
	e.refuses(e.rescue("db3", "install", "link.tar"), "no plain file")
	e.refuses(e.rescue("db3", "install", "db4.tar"), "no plain file")
	if after := e.holds("db3"); after != before || strings.Count(after, "\n") != 9 {
		t.Errorf("db3 held\n%s\nand after refusals\n%s", before, after)
	}
	if place := e.place("db3"); place != e.places["db3"] {
		t.Errorf("after refusals db3 is at %s", place)
	}
	e.cutAnywhere(db3, at)
}

// cutAnywhere kills an installation at one sync, then at one further on, and so on; each run begins with what the one before left. The last
// comes to its end, and removes the file.
func (e *ended) cutAnywhere(db3 *host, file string) {
	t := e.t
	t.Helper()
	db3.write("/opt/cut/sync", "#!/bin/sh\nn=$(cat /opt/cut/left)\n[ $n -gt 0 ] || { exec 9>&-; kill -KILL $PPID; exit; }\necho $((n-1)) >/opt/cut/left\nexec /usr/bin/sync \"$@\"\n")
	must(t, os.Chmod(db3.path("/opt/cut/sync"), 0o755))
	cut := 0
	for ; cut < 40; cut += 5 {
		db3.write("/opt/cut/left", fmt.Sprint(cut))
		out, err := db3.shell("PATH=/opt/cut:$PATH chancery-member-rescue install db3.tar").CombinedOutput()
		if err == nil {
			break
		}
		if !strings.Contains(string(out), "Killed") && !strings.Contains(err.Error(), "137") {
			t.Fatalf("cut at sync %d, it ends with %v:\n%s", cut, err, out)
		}
	}
	if cut < 15 || cut >= 40 {
		t.Errorf("it had %d steps", cut)
	}
	if _, err := os.Lstat(file); !os.IsNotExist(err) {
		t.Errorf("the file with the keys is there: %v", err)
	}
	e.refuses(e.rescue("db3", "install", "db3.tar"), "where install has ended, it has removed it")
	held := e.holds("db3")
	for _, want := range []string{"postgresql/tls/server.key postgres:postgres 600 ", "postgresql/client/postgresql.key postgres:postgres 600 ", "etcd/tls/peer.key etcd:postgres 640 "} {
		if !strings.Contains(held, want) {
			t.Errorf("db3 holds\n%s\nand not %s", held, want)
		}
	}
}

// keeps has the page's installation fail on one member, and wants that one's file, the way to the socket and all else to be there until it is
// typed again, and to be gone then.
func (e *ended) keeps(install func()) {
	t := e.t
	t.Helper()
	root := filepath.Join(e.s.machines["authority"].home, "root")
	e.s.types("db2", "cd /usr/local/sbin\nmv chancery-member-rescue away")
	install()
	e.s.types("db2", "cd /usr/local/sbin\nmv away chancery-member-rescue")
	if left, err := filepath.Glob(filepath.Join(root, "db", "*.tar")); err != nil || len(left) != 1 || filepath.Base(left[0]) != "db2.tar" {
		t.Fatalf("where db2 alone did not install, %v are left: %v", left, err)
	}
	_, err := os.Stat(filepath.Join(root, "socket-url"))
	must(t, err)
	install()
	for _, name := range []string{"db", "socket-url", "places"} {
		if _, err := os.Stat(filepath.Join(root, name)); !os.IsNotExist(err) {
			t.Errorf("when all have theirs, %s is left: %v", name, err)
		}
	}
}

// waits has a member that etcd takes for the last leader, of before the rescue, wait for the one that leads now.
func (e *ended) waits() {
	t := e.t
	t.Helper()
	db2 := e.s.machines["db2"]
	put := fmt.Sprintf(`{"key":"%s","value":"%s"}`, base64.StdEncoding.EncodeToString([]byte("/service/chancery/sync")),
		base64.StdEncoding.EncodeToString([]byte(`{"leader":"db2","sync_standby":null}`)))
	until(t, "etcd has a majority", func() bool {
		return db2.shell("curl -fsS --max-time 5 --cacert /etc/etcd/tls/root.crt --cert /etc/etcd/tls/peer.crt --key /etc/etcd/tls/peer.key -d '"+put+
			"' https://db2-control:2379/v3/kv/put").Run() == nil
	})
	cmd := e.rescue("db2", "start")
	said, err := cmd.StderrPipe()
	must(t, err)
	must(t, cmd.Start())
	lines, waits := bufio.NewScanner(said), false
	for !waits && lines.Scan() {
		waits = strings.Contains(lines.Text(), "waiting: no member leads that was promoted since look")
	}
	if !waits {
		t.Errorf("db2 does not wait for the one that leads: %v", lines.Err())
	}
	must(t, cmd.Process.Signal(syscall.SIGTERM)) // timeout, which tells the others
	cmd.Wait()
	if _, err := os.Stat(db2.path("/run/patroni.wanted")); err == nil {
		t.Error("the Patroni of db2 was started before the one that leads")
	}
}

func (e *ended) started() {
	t := e.t
	t.Helper()
	for _, name := range []string{"db1", "db2", "db3"} {
		// One that is well is left alone.
		e.refuses(e.rescue(name, "look"), "none of this member's certificates has ended")
		e.holds(name)
		if out := output(t, e.rescue(name, "start")); !strings.HasPrefix(out, name+" ") {
			t.Errorf("started again, %s says %q", name, out)
		}
	}
	e.s.members("running", 3)
	for _, name := range []string{"db1", "db2"} { // nor is it told to stop what runs well
		if out, err := e.rescue(name, "stand-down").CombinedOutput(); err != nil || !strings.Contains(string(out), "nothing was begun here") {
			t.Errorf("stand-down on %s, which is well: %v: %s", name, err, out)
		}
	}
	e.s.members("running", 3)
	join := e.rescue("db2", "join")
	join.Stdin = strings.NewReader("one\n")
	e.refuses(join, "want a token each")
	join = e.rescue("db2", "join")
	join.Stdin = strings.NewReader("one\ntwo\n")
	e.refuses(join, "the agent of db2 does not join")
}
