package place

import (
	"context"
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/metrics"
	"strings"
	"sync"
	"syscall"
	"testing"

	"chancery/internal/agent/probe"
	"chancery/internal/agent/recipe"
	"chancery/internal/pki/keyfile"
)

// TestNSSDatabaseOfAnEnemy: whoever runs the consumer may write its database, and root reads it. One that computes instead of
// holding is refused before any row is read and before NSS's tools see it.
func TestNSSDatabaseOfAnEnemy(t *testing.T) {
	o := newOffice(t, keyfile.ECDSAP256)
	const bomb = `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 100000) SELECT x'00000001' AS a0, 'x' AS a3, zeroblob(1000000) AS a11 FROM n`
	for what, c := range map[string]struct {
		file, says string
		words      []string
	}{
		"a view":               {"cert9.db", "not as NSS makes it", []string{`ALTER TABLE nssPublic RENAME TO other`, `CREATE VIEW nssPublic AS ` + bomb}},
		"a view beside":        {"key4.db", "not as NSS makes it", []string{`CREATE VIEW more AS ` + bomb}},
		"a computed column":    {"cert9.db", "not as NSS makes it", []string{`ALTER TABLE nssPublic ADD COLUMN b BLOB AS (zeroblob(1000000))`}},
		"a computed index":     {"cert9.db", "not as NSS makes it", []string{`CREATE INDEX more ON nssPublic (hex(zeroblob(1000000)))`}},
		"a trigger":            {"key4.db", "not as NSS makes it", []string{`CREATE TRIGGER more AFTER INSERT ON metaData BEGIN DELETE FROM metaData; END`}},
		"a virtual table":      {"cert9.db", "not as NSS makes it", []string{`CREATE VIRTUAL TABLE more USING fts5(a)`}},
		"a long certificate":   {"cert9.db", "64 KiB", []string{`INSERT INTO nssPublic (id, a0, a3, a11) VALUES (7, x'00000001', 'x', zeroblob(70000))`}},
		"many of them":         {"cert9.db", "64 KiB or 10000", []string{`INSERT INTO nssPublic (id, a0, a3, a11) WITH RECURSIVE n(i) AS (SELECT 9 UNION ALL SELECT i + 1 FROM n LIMIT 10001) SELECT i, x'00000001', 'x', x'00' FROM n`}},
		"the log of a program": {"cert9.db", "WAL mode", []string{`PRAGMA journal_mode=WAL`}},
	} {
		n := newNSS(t, "a secret of the store")
		if err := os.MkdirAll(n.dir, 0o755); err != nil {
			t.Fatal(err)
		}
		n.certutil(t, "-N")
		db, err := sql.Open("sqlite", "file:"+filepath.Join(n.dir, c.file))
		if err != nil {
			t.Fatal(err)
		}
		for _, words := range c.words {
			if _, err := db.Exec(words); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		before := allocated()
		out, err := n.placer.Place(t.Context(), n.set(t, o.material, "server"), nil, nil)
		if err == nil || !strings.Contains(err.Error(), c.says) || len(out.Changed) > 0 {
			t.Errorf("%s: %+v %v", what, out, err)
		}
		if took := allocated() - before; took > 256<<20 {
			t.Errorf("%s: %d MiB were allocated", what, took>>20)
		}
	}
}

func allocated() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// TestStoreThatChangesWhileItIsRead: a program that writes between two of the files of a store is noticed, and nothing is made
// of what was read of different moments.
func TestStoreThatChangesWhileItIsRead(t *testing.T) {
	s := newScene(t)
	for _, name := range []string{"certs", "keys"} {
		s.put(t, "/srv/db/"+name, []byte("of others\n"), 0o644)
	}
	wrote := false
	p := s.placer(t, func(o *Options) {
		o.Cut = func(op Operation) error {
			if op.Name == "read" && strings.HasSuffix(op.Path, "/keys") && !wrote {
				wrote = true
				s.put(t, "/srv/db/certs", []byte("of others\nand more\n"), 0o644)
				s.put(t, "/srv/db/keys", []byte("of others\nand more\n"), 0o644)
			}
			return nil
		}
	})
	share := lines("ours")
	set := Set{Name: "db", Files: []File{{Path: "/srv/db/certs", Share: share}, {Path: "/srv/db/keys", Share: share}}}
	if out, err := p.Place(t.Context(), set, nil, nil); !wrote || err == nil || !strings.Contains(err.Error(), "changed while") || len(out.Changed) > 0 {
		t.Fatalf("%+v %v (written: %t)", out, err, wrote)
	}
	mustPlace(t, p, set)
	for _, name := range []string{"certs", "keys"} {
		if got := string(s.get(t, "/srv/db/"+name)); got != "of others\nand more\nours\n" {
			t.Errorf("%s holds %q", name, got)
		}
	}
}

// killNSS is what a process that is to be killed over a database is told.
type killNSS struct {
	Root, State, Scratch string
	P12, Anchor          []byte
	Cut                  int // the operation on a file, or where it is negative the run of a tool, before which it dies
}

const killPassword = "a secret of the store"

func (k killNSS) sources() Sources {
	ran := 0
	return Sources{
		Scratch:  k.Scratch,
		Password: func(string) ([]byte, error) { return []byte(killPassword + "\n"), nil },
		Run: func(args ...string) ([]byte, error) {
			if ran++; ran == -k.Cut {
				die()
			}
			return probe.System{}.Run(context.Background(), probe.Command{Args: args})
		},
	}
}

func (k killNSS) set() (Set, error) {
	entries, err := keyfile.DecodePKCS12(k.P12, []byte(killPassword))
	if err != nil {
		return Set{}, err
	}
	anchor, err := x509.ParseCertificate(k.Anchor)
	if err != nil {
		return Set{}, err
	}
	plan := planned("", recipe.PlannedFile{Format: "nss", Content: []string{"key", "path", "anchors"}, Alias: "server", PasswordFile: "/srv/pin"})
	plan.Files[0].Path, plan.Files[0].Mode = "/srv/nssdb", 0o640
	m := &probe.Material{Key: entries[0].Key, Path: entries[0].Chain, Anchors: []*x509.Certificate{anchor}}
	return Render(plan, map[string]*probe.Material{"main": m}, k.sources())
}

func die() {
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // the signal is on its way
}

// placeNSSAndDie places a database in a process that SIGKILL ends.
func placeNSSAndDie(words string) {
	var k killNSS
	err := json.Unmarshal([]byte(words), &k)
	var p *Placer
	if err == nil {
		s := scene{root: k.Root, state: k.State}
		o := s.options()
		seen := 0
		o.Cut = func(Operation) error {
			if seen++; seen == k.Cut {
				die()
			}
			return nil
		}
		p, err = New(o)
	}
	if err != nil {
		panic(err)
	}
	set, err := k.set()
	if err == nil {
		_, err = p.Place(context.Background(), set, nil, nil)
	}
	fmt.Println("not killed:", err)
}

// TestNSSDatabaseOfAKilledAgent kills an agent with SIGKILL while it renews what is in a database of several files and rotates
// its root: between its operations on files, and between the tools. After a repair the files are of one moment, of before or of
// after, and NSS finds a key for the certificate; the next placement ends well, and leaves nothing of the one that was killed.
func TestNSSDatabaseOfAKilledAgent(t *testing.T) {
	o, next := newOffice(t, keyfile.ECDSAP256), newOffice(t, keyfile.ECDSAP256)
	cuts := []int{-2, -5, 20, 60, 100, 130, 160, 180, 200, 210, 220, 230}
	if testing.Short() {
		cuts = []int{-4, 110, 140}
	}
	work := make(chan int)
	var mu sync.Mutex
	killed, old, renewed := 0, 0, 0
	var wait sync.WaitGroup
	for range 3 {
		wait.Go(func() {
			for cut := range work {
				var was string
				var ok bool
				t.Run(fmt.Sprint(cut), func(t *testing.T) { was, ok = killedNSS(t, o, next, cut) })
				mu.Lock()
				if ok {
					killed++
				}
				if was == "old" {
					old++
				} else if was == "new" {
					renewed++
				}
				mu.Unlock()
			}
		})
	}
	for _, cut := range cuts {
		work <- cut
	}
	close(work)
	wait.Wait()
	t.Logf("%d kills: %d times the old database, %d times the new one", killed, old, renewed)
	if killed < 3 || !testing.Short() && (killed < 8 || old == 0 || renewed == 0) {
		t.Errorf("%d kills left the old database %d times and the new one %d times: the test proves too little", killed, old, renewed)
	}
}

// killedNSS reports which database was there after a kill and a repair, and whether there was a kill.
func killedNSS(t *testing.T, o, next *office, cut int) (was string, killed bool) {
	n := newNSS(t, killPassword)
	at := fmt.Sprintf("killed at %d", cut)
	p12, err := keyfile.EncodePKCS12([]keyfile.Entry{{Alias: "server", Key: next.material.Key, Chain: next.material.Path}}, []byte(killPassword))
	if err != nil {
		t.Error(err)
		return "", false
	}
	if _, err := n.placer.Place(t.Context(), n.trusting(t, o), nil, nil); err != nil {
		t.Error(err)
		return "", false
	}
	n.placer.Close()
	k := killNSS{Root: n.root, State: n.state, Scratch: n.sources.Scratch, P12: p12, Anchor: next.root.Raw, Cut: cut}
	words, err := json.Marshal(k)
	if err != nil {
		t.Error(err)
		return "", false
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envKillNSS+"="+string(words))
	out, err := cmd.CombinedOutput()
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() || status.Signal() != syscall.SIGKILL {
		if cut < 100 || !strings.Contains(string(out), "not killed: <nil>") { // past the last operation there is nobody to kill
			t.Errorf("%s: the process ended by itself: %v\n%s", at, err, out)
		}
		return "", false
	}
	p, err := New(n.options())
	if err == nil {
		defer p.Close()
		_, err = p.Repair(t.Context())
	}
	if err != nil {
		t.Errorf("%s: repair: %v", at, err)
		return "", true
	}
	was = n.whole(t, at, o, next)
	k.Cut = 0
	set, err := k.set()
	if err == nil {
		_, err = p.Place(t.Context(), set, nil, nil)
	}
	if err != nil {
		t.Errorf("%s: the next placement: %v", at, err)
	}
	if now := n.whole(t, at, o, next); now != "new" {
		t.Errorf("%s: after the next placement the database is %q", at, now)
	}
	if _, err := os.Stat(n.sources.Scratch); was == "old" && !os.IsNotExist(err) {
		t.Errorf("%s: the scratch directory is left: %v", at, err)
	}
	return was, true
}

func (n *nssScene) trusting(t *testing.T, o *office) Set {
	m := *o.material
	m.Anchors, m.Pinned = []*x509.Certificate{o.root}, nil
	return n.set(t, &m, "server")
}

// whole reports of which of two sets a database is, key and certificates.
func (n *nssScene) whole(t *testing.T, at string, o, next *office) string {
	out, err := exec.Command("certutil", "-V", "-u", "V", "-e", "-n", "server", "-d", "sql:"+n.dir, "-f", filepath.Join(n.root, "srv/pin")).CombinedOutput()
	if err != nil {
		t.Errorf("%s: NSS does not take it: %s", at, out)
	}
	keys, err := exec.Command("certutil", "-K", "-d", "sql:"+n.dir, "-f", filepath.Join(n.root, "srv/pin")).CombinedOutput()
	if err != nil || strings.Count(string(keys), "server") != 1 || strings.Count(string(keys), "<") != 1 {
		t.Errorf("%s: keys: %v %s", at, err, keys)
	}
	has, err := readNSS(n.dir)
	if err != nil {
		t.Errorf("%s: %v", at, err)
	}
	there := map[string]bool{}
	for _, e := range has {
		there[fingerprint(e.der)] = true
	}
	all := func(o *office) bool { return there[fingerprint(o.leaf.Raw)] && there[fingerprint(o.root.Raw)] }
	some := func(o *office) bool { return there[fingerprint(o.leaf.Raw)] || there[fingerprint(o.root.Raw)] }
	switch {
	case all(o) && !some(next):
		return "old"
	case all(next) && !some(o):
		return "new"
	}
	t.Errorf("%s: the database is of neither set: %d certificates", at, len(has))
	return ""
}
