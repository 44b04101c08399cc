package faults_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	xocsp "golang.org/x/crypto/ocsp"

	"chancery/client"
	"chancery/internal/pkitest"
)

// TestDatabaseCrashesUnderLoad crashes PostgreSQL, which writes durably here, while clients issue and revoke. The node stays
// up, says that it is not ready, recovers by itself when the database is back, and answers repeated calls as the first.
func TestDatabaseCrashesUnderLoad(t *testing.T) {
	t.Parallel()
	database := pkitest.Postgres(t)
	database.Exec(t, "CREATE DATABASE chancery")
	const password = "hunter2-of-the-database"
	dir := authorityOn(t, strings.Replace(database.URL("chancery"), "chancery@", "chancery:"+password+"@", 1))
	p, ctx := startNode(t, dir), t.Context()
	w := &witness{t: t, issued: map[string]string{}, pending: map[string]bool{}, revoked: map[string]bool{}}
	until(t, "a CRL is served", func() bool { s, _ := get(t, "http://"+p.Public+"/crl/default.crl"); return s == http.StatusOK })
	for round := range 3 {
		loading, stop := context.WithCancel(ctx)
		var group sync.WaitGroup
		var answered atomic.Int64
		enough := make(chan struct{})
		for n := range 4 {
			c := p.admin()
			group.Go(func() { w.load(loading, c, fmt.Sprintf("r%d-c%d", round, n), &answered, enough) })
		}
		<-enough // and so the clients are in the middle of it
		must(t, database.Crash())
		until(t, "readyz says that the node is not ready", func() bool {
			status, text := get(t, "http://"+p.Metrics+"/readyz")
			return status == http.StatusServiceUnavailable && strings.Contains(string(text), "not ready")
		})
		stop()
		group.Wait()
		if status, _ := get(t, "http://"+p.Metrics+"/healthz"); status != http.StatusOK {
			t.Errorf("healthz: %d while the database is away", status)
		}
		_, err := p.admin().Issue(ctx, order("away.test"))
		if refusal := problem(t, err, "unavailable"); refusal.RetryAfter == 0 || strings.Contains(refusal.Error(), password) {
			t.Errorf("while the database is away: %+v", refusal)
		}
		must(t, database.Restart())
		until(t, "the node is ready again", func() bool { s, _ := get(t, "http://"+p.Metrics+"/readyz"); return s == http.StatusOK })
		w.hold(ctx, p)
	}
	if len(w.issued) < 30 || len(w.revoked) < 3 {
		t.Errorf("%d certificates and %d revocations prove nothing", len(w.issued), len(w.revoked))
	}
	c := p.admin()
	issuer := issuerOf(t, c)
	out, err := c.Issue(ctx, order("fresh.test"))
	must(t, err)
	if ask(t, p, issuer, out.Certificate.Serial) != xocsp.Good {
		t.Error("what is issued after the crashes is not good")
	}
	p.stop()
	if log := p.log.String(); strings.Contains(log, password) {
		t.Errorf("the log holds the database's password")
	}
	t.Logf("%d certificates, %d revocations", len(w.issued), len(w.revoked))
}

// load issues and revokes until ctx ends. A call that fails stays without an answer, until it is repeated.
func (w *witness) load(ctx context.Context, c *client.Client, name string, answered *atomic.Int64, enough chan struct{}) {
	for i := 0; ctx.Err() == nil; i++ {
		key := fmt.Sprintf("%s-%d", name, i)
		if !w.issue(ctx, c, key) {
			continue
		}
		if i%3 == 0 {
			w.revoke(ctx, c, key)
		}
		if answered.Add(1) == 40 {
			close(enough)
		}
	}
}

// TestDatabaseCrashesAtCommit crashes PostgreSQL in the moment in which an issuance is committed: nobody knows whether it
// was, until the call is repeated.
func TestDatabaseCrashesAtCommit(t *testing.T) {
	t.Parallel()
	database := pkitest.Postgres(t)
	database.Exec(t, "CREATE DATABASE chancery")
	f := newFaultyOn(t, database.URL("chancery"))
	for n := range 3 {
		name := fmt.Sprintf("c%d.test", n)
		var once sync.Once
		crashed := make(chan error, 1)
		f.faults.BeforeCommit(func() { once.Do(func() { crashed <- database.Crash() }) })
		ctx := client.WithIdempotencyKey(t.Context(), name)
		first, err := f.admin.Issue(ctx, order(name))
		must(t, <-crashed)
		f.faults.Clear()
		if refusal, ok := errors.AsType[*client.Problem](err); err != nil && (!ok || refusal.Kind() != "unavailable") {
			t.Errorf("crashed at the commit: %v", err)
		}
		must(t, database.Restart())
		var second *client.IssueResult
		until(t, "the repeated call is answered", func() bool { second, err = f.admin.Issue(ctx, order(name)); return err == nil })
		if first.Certificate != nil && first.Certificate.Serial != second.Certificate.Serial {
			t.Errorf("two certificates for one key: %s, %s", first.Certificate.Serial, second.Certificate.Serial)
		}
		if got := f.named(name); got != 1 {
			t.Errorf("%d certificates for one call", got)
		}
	}
	verified(t, f.admin)
}
