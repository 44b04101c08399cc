package clone_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"chancery/client"
	"chancery/internal/authority/clone"
	"chancery/internal/fault"
	"chancery/internal/store/once"
	"chancery/internal/store/schema"
)

// resists has a session of a node's login hold rows that its removal needs, and work on, as far as PostgreSQL can tell.
func (a *authority) resists(node, begin string) {
	a.t.Helper()
	ctx := context.WithoutCancel(a.t.Context())
	conn, err := pgx.Connect(ctx, strings.Replace(a.url, "//chancery_n1@", "//chancery_"+node+"@", 1))
	must(a.t, err)
	_, err = conn.Exec(ctx, begin)
	must(a.t, err)
	ended := make(chan error, 1)
	go func() {
		_, err := conn.Exec(ctx, "SELECT pg_sleep(3600)")
		ended <- err
	}()
	a.t.Cleanup(func() {
		if !a.t.Failed() && <-ended == nil {
			a.t.Error("a session of a node that was removed has done what it wanted")
		}
		_ = conn.Close(ctx)
	})
}

// limitsReaders has an authority whose nodes ran another release: what that gave the logins of nodes that do not issue is taken back once no
// node of it is left.
func (a *authority) limitsReaders(reader string) {
	a.t.Helper()
	ctx, now := a.t.Context(), time.Now()
	must(a.t, a.Clones.Report(ctx, clone.Self{}, now))
	a.exec(`GRANT INSERT, UPDATE ON clock TO pki_reader`)
	former := func() int64 {
		now = now.Add(time.Hour)
		must(a.t, a.Clones.Finish(ctx, now))
		return a.count(`SELECT COUNT(*) FROM pg_roles WHERE rolname = 'pki_reader' AND has_table_privilege(oid, 'clock', 'UPDATE')`)
	}
	a.waitsSince("n6", 22)
	if former() != 1 {
		a.t.Error("a node waits that knows schema 22, and the rights that it needs are taken back")
	}
	must(a.t, a.Clones.Remove(ctx, a.admin, "n6", clone.Removal{}, once.Call{}))
	for _, known := range []struct{ schema, former int64 }{{22, 1}, {schema.Newest(), 0}} {
		a.exec(`UPDATE node SET seen_at = 1, report = '{"Schema":' || CAST(CAST($1 AS BIGINT) AS TEXT) || '}' WHERE name = $2`, known.schema, reader)
		if n := former(); n != known.former {
			a.t.Errorf("a node knows schema %d, and %d roles have the rights of a release before", known.schema, n)
		}
	}
}

// waitsSince has a machine ask to join whose program knows an older schema, and wait since before the database had what that lacks. It is not
// approved.
func (a *authority) waitsSince(name string, known int64) {
	a.t.Helper()
	m := a.machine(name, a.invite("ocsp"))
	m.in.Schema = known
	_, err := a.Clones.Join(a.t.Context(), m.in)
	refused(a.t, err, fault.Conflict, fmt.Sprintf("knows the schema up to %d, and the database needs one that knows 23 to %d", known, schema.Newest()))
	m.in.Schema = schema.Newest()
	waits, err := a.Clones.Join(a.t.Context(), m.in)
	must(a.t, err)
	a.exec(`UPDATE node SET request = replace(request, $1, $2) WHERE name = $3`, fmt.Sprintf(`"schema":%d`, schema.Newest()), fmt.Sprintf(`"schema":%d`, known), name)
	refused(a.t, a.approves(name, waits.Fingerprint), fault.Conflict, "chancery clone remove "+name, "needs one that knows 23")
}

// TestNodeThatResistsItsRemoval has whoever has a node's login hold what the node's removal needs: the login is out all the same, and the
// node with it.
func TestNodeThatResistsItsRemoval(t *testing.T) {
	t.Parallel()
	a, ctx := withLogins(t), t.Context()
	for name, token := range map[string]*client.CloneToken{"n2": a.invite(), "n3": a.invite(), "n4": a.invite("ocsp")} {
		m := a.machine(name, token)
		m.in.DatabaseCSR = a.machine("x", &client.CloneToken{}).in.CSR
		a.joins(m)
	}
	a.limitsReaders("n4")
	const own = "UPDATE node SET report = report WHERE name = substr(session_user, 10)"
	a.resists("n2", "SET ROLE pki; BEGIN; "+own)
	a.resists("n3", "SET ROLE pki; BEGIN; "+own+"; INSERT INTO write_mark (node, number) VALUES ('n3', 1); SET ROLE NONE; ALTER ROLE chancery_n3 PASSWORD 'x'")
	for name, how := range map[string]clone.Removal{"n2": {Force: true}, "n3": {Compromised: true}} {
		must(t, a.Clones.Remove(ctx, a.admin, name, how, once.Call{}))
		if a.count(`SELECT COUNT(*) FROM node WHERE name = $1 AND state = 'gone' AND database_role = ''`, name) != 1 {
			t.Errorf("%s is not gone", name)
		}
	}
	a.joins(a.withDatabase("n5"))
	a.heldByOthers("n5")
	if left := must1(t)(a.DB.Logins(ctx)); slices.Contains(left, "chancery_n2") || slices.Contains(left, "chancery_n3") {
		t.Errorf("the logins are %q", left)
	}
}
