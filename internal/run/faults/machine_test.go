package faults_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	xocsp "golang.org/x/crypto/ocsp"

	"chancery/client"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/upkeep/datadir"
)

// smallDisk is the order to put a tmpfs over a data directory, with a copy of its files; only the node sees it.
func smallDisk(t *testing.T, dir datadir.Dir, options string) string {
	t.Helper()
	from := string(dir) + ".copy"
	out, err := exec.Command("cp", "-a", string(dir), from).CombinedOutput()
	if err != nil {
		t.Fatalf("copy: %v: %s", err, out)
	}
	return from + "," + string(dir) + "," + options
}

// TestDiskFillsUp fills the disk under a node that runs: what changes something is refused and says why, what only reads
// goes on, and when there is room again the node goes on by itself.
func TestDiskFillsUp(t *testing.T) {
	t.Parallel()
	dir, ctx := newAuthority(t, db.SQLite), t.Context()
	p := startNodeOn(t, dir, smallDisk(t, dir, "size=16m,mode=0700"))
	c := p.admin()
	issuer := issuerOf(t, c)
	good, err := c.Issue(ctx, order("good.test"))
	must(t, err)
	until(t, "a CRL is served", func() bool { s, _ := get(t, "http://"+p.Public+"/crl/default.crl"); return s == http.StatusOK })
	ballast := fill(t, filepath.Join("/proc", fmt.Sprint(p.cmd.Process.Pid), "root", string(dir), "ballast"))
	n, refused := 0, error(nil)
	for n < 20_000 && refused == nil {
		if _, refused = c.Issue(ctx, order(fmt.Sprintf("full%d.test", n))); refused == nil {
			n++
		}
	}
	if refusal := problem(t, refused, "unavailable"); !strings.Contains(refusal.Detail, "full") || refusal.Hint == "" || refusal.RetryAfter == 0 {
		t.Errorf("after %d: %+v", n, refusal)
	}
	_, err = c.Revoke(ctx, "", good.Certificate.Serial, client.RevokeRequest{})
	problem(t, err, "unavailable")
	until(t, "readyz says that the disk is full", func() bool {
		status, text := get(t, "http://"+p.Metrics+"/readyz")
		return status == http.StatusServiceUnavailable && strings.Contains(string(text), "is full")
	})
	if status, _ := get(t, "http://"+p.Metrics+"/healthz"); status != http.StatusOK {
		t.Errorf("healthz answers %d, and a restart would not mend it", status)
	}
	if ask(t, p, issuer, good.Certificate.Serial) != xocsp.Good {
		t.Error("OCSP does not go on")
	}
	p.crl("default")
	if found, err := c.Certificate(ctx, "", good.Certificate.Serial); err != nil || found.State != client.StateValid {
		t.Errorf("reading does not go on: %v", err)
	}
	must(t, os.Remove(ballast))
	until(t, "the node issues again", func() bool { _, err = c.Issue(ctx, order("after.test")); return err == nil })
	until(t, "the node is ready again", func() bool { status, _ := get(t, "http://"+p.Metrics+"/readyz"); return status == http.StatusOK })
	_, err = c.Revoke(ctx, "", good.Certificate.Serial, client.RevokeRequest{})
	must(t, err)
	count := 0
	for _, err := range c.Certificates(ctx, client.CertificateFilter{Profile: "server"}) {
		must(t, err)
		count++
	}
	if count != n+2 {
		t.Errorf("%d certificates, and %d were acknowledged", count, n+2)
	}
	verified(t, c)
	p.stop()
}

// fill writes a file until the disk is full.
func fill(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	for block := make([]byte, 4096); ; {
		if _, err := f.Write(block); errors.Is(err, syscall.ENOSPC) {
			return path
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// TestDataDirectoryIsReadOnly: the node says so, names the place, and ends.
func TestDataDirectoryIsReadOnly(t *testing.T) {
	t.Parallel()
	dir := newAuthority(t, db.SQLite)
	p := launch(t, smallDisk(t, dir, "size=16m,mode=0700,ro"), "serve", "--dir", string(dir))
	err := p.wait()
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok || exit.ExitCode() != 1 {
		t.Fatalf("ended with %v:\n%s", err, p.log.String())
	}
	for _, want := range []string{string(dir), "read-only", "hint:"} {
		if !strings.Contains(p.log.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, p.log.String())
		}
	}
}

// TestSecondProcessIsSentAway starts a second node and other local work on a directory in use.
func TestSecondProcessIsSentAway(t *testing.T) {
	t.Parallel()
	dir := newAuthority(t, db.SQLite)
	p := startNode(t, dir)
	for _, args := range [][]string{{"serve", "--dir", string(dir)}, {"init", "--dir", string(dir)}} {
		_, stderr, err := command(t, args...)
		if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 {
			t.Errorf("%v: %v", args, err)
		}
		if args[0] == "serve" && !strings.Contains(stderr, fmt.Sprint(p.cmd.Process.Pid)) {
			t.Errorf("it does not name process %d:\n%s", p.cmd.Process.Pid, stderr)
		}
	}
	_, err := p.admin().Issue(t.Context(), order("first.test"))
	must(t, err)
	p.stop()
	startNode(t, dir).stop() // the lock went with its holder
}

// TestClockIsBehindWhileServing moves the authority's mark an hour ahead under a node that runs, as a node whose clock is
// right would after this one's was set back.
func TestClockIsBehindWhileServing(t *testing.T) {
	t.Parallel()
	url, ctx := pkitest.URL(t, db.Postgres), t.Context()
	dir := authorityOn(t, url)
	p := startNode(t, dir)
	c := p.admin()
	issuer := issuerOf(t, c)
	good, err := c.Issue(ctx, order("good.test"))
	must(t, err)
	until(t, "a CRL is served", func() bool { s, _ := get(t, "http://"+p.Public+"/crl/default.crl"); return s == http.StatusOK })
	if ask(t, p, issuer, good.Certificate.Serial) != xocsp.Good {
		t.Error("OCSP does not know it")
	}
	// In its first moments a node keeps no answers; one that it gives again it has kept.
	until(t, "the answer is kept", func() bool {
		return bytes.Equal(answer(t, p, issuer, good.Certificate.Serial).Raw, answer(t, p, issuer, good.Certificate.Serial).Raw)
	})
	other := pkitest.Open(t, db.Options{URL: url})
	must(t, other.ResetClock(ctx, time.Now().Add(time.Hour)))
	until(t, "readyz says so", func() bool {
		status, text := get(t, "http://"+p.Metrics+"/readyz")
		return status == http.StatusServiceUnavailable && strings.Contains(string(text), "clock is behind")
	})
	for name, call := range map[string]func() error{
		"issue":      func() error { _, err := c.Issue(ctx, order("late.test")); return err },
		"revoke":     func() error { _, err := c.Revoke(ctx, "", good.Certificate.Serial, client.RevokeRequest{}); return err },
		"checkpoint": func() error { _, err := c.SignCheckpoint(ctx); return err },
	} {
		if refusal := problem(t, call(), "unavailable"); !strings.Contains(refusal.Detail, "clock is behind") {
			t.Errorf("%s: %+v", name, refusal)
		}
	}
	p.crl("default")
	if ask(t, p, issuer, good.Certificate.Serial) != xocsp.Good {
		t.Error("OCSP does not go on")
	}
	status, err := c.Status(ctx)
	must(t, err)
	if status.Ready || !strings.Contains(status.Clock, "behind") {
		t.Errorf("status: ready %v, clock %s", status.Ready, status.Clock)
	}
	must(t, other.ResetClock(ctx, time.Now()))
	until(t, "the node issues again", func() bool { _, err := c.Issue(ctx, order("again.test")); return err == nil })
	p.stop()
}

// TestClockIsAheadWhileServing starts a node whose clock is days ahead of the database's and of the time that the authority has seen: it
// signs nothing, takes no lease, removes nothing as over, puts no time into the store that would stop others, and says so wherever it is asked.
func TestClockIsAheadWhileServing(t *testing.T) {
	t.Parallel()
	url, ctx := pkitest.URL(t, db.Postgres), t.Context()
	dir := authorityOn(t, url)
	other := pkitest.Open(t, db.Options{URL: url})
	run := func(statement string) {
		t.Helper()
		_, err := other.Migrator().ExecContext(ctx, statement)
		must(t, err)
	}
	first := startNode(t, dir) // it has its certificate from when all clocks were right
	first.stop()
	// The server shows all others' time: sessions that begin now find this function before its own.
	run(`CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS $$ SELECT pg_catalog.clock_timestamp() - interval '8 days' $$`)
	run(`DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = public, pg_catalog', current_database()); END $$`)
	behind := time.Now().Add(-8 * 24 * time.Hour)
	must(t, other.ResetClock(ctx, behind))
	// What is a minute old by the server's clock, and what lasts a day still, is long over by the node's.
	run(fmt.Sprintf(`INSERT INTO once (caller, request_key, request_hash, response, created_at) VALUES ('c', 'k', '', '', %d)`, db.Micros(behind.Add(-time.Minute))))
	run(fmt.Sprintf(`CREATE TABLE ends AS SELECT id, not_after FROM trust_entry; UPDATE trust_entry SET not_after = %d`, db.Micros(behind.Add(24*time.Hour))))
	p := startNode(t, dir)
	until(t, "readyz says so", func() bool {
		status, text := get(t, "http://"+p.Metrics+"/readyz")
		return status == http.StatusServiceUnavailable && strings.Contains(string(text), "clock is ahead")
	})
	c := p.admin()
	_, err := c.Issue(ctx, order("early.test"))
	if refusal := problem(t, err, "unavailable"); !strings.Contains(refusal.Detail, "clock is ahead") {
		t.Errorf("issue: %+v", refusal)
	}
	status, err := c.Status(ctx)
	must(t, err)
	if status.Ready || !strings.Contains(status.Clock, "clock is ahead") {
		t.Errorf("status: ready %v, clock %s", status.Ready, status.Clock)
	}
	until(t, "clone status says so", func() bool {
		all, err := client.Collect(c.Clones(ctx))
		must(t, err)
		return len(all) == 1 && !all[0].Ready && len(all[0].Leases) == 0 && strings.Contains(strings.Join(all[0].NotReady, " "), "clock is ahead")
	})
	said := false
	for f, err := range c.Doctor(ctx) {
		must(t, err)
		said = said || f.Level == "error" && strings.Contains(f.Message, "clock is ahead")
	}
	if !said {
		t.Error("doctor does not say so")
	}
	if seen, err := other.SeenTime(ctx); err != nil || seen.After(behind.Add(time.Minute)) {
		t.Errorf("the authority has seen %v, %v", seen, err)
	}
	until(t, "it has tried to remove what is over", func() bool {
		said := p.log.String()
		return strings.Contains(said, `"prune"`) && strings.Contains(said, "the pools' trust is not tended")
	})
	var kept, trusted int
	must(t, other.Migrator().QueryRowContext(ctx, `SELECT (SELECT COUNT(*) FROM once WHERE request_key = 'k'), (SELECT COUNT(*) FROM trust_entry WHERE pruned_at = 0)`).
		Scan(&kept, &trusted))
	if kept != 1 || trusted == 0 {
		t.Errorf("it removed what is not over by the server's clock: %d of 1 calls kept, %d entries trusted", kept, trusted)
	}
	run(`UPDATE trust_entry SET not_after = ends.not_after FROM ends WHERE ends.id = trust_entry.id`)
	run(`DROP FUNCTION public.clock_timestamp()`)
	until(t, "the node issues", func() bool { _, err := c.Issue(ctx, order("again.test")); return err == nil })
	until(t, "readyz says so", func() bool { status, _ := get(t, "http://"+p.Metrics+"/readyz"); return status == http.StatusOK })
	p.stop()
}
