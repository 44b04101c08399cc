package clone_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"chancery/client"
	"chancery/internal/authority/clone"
	"chancery/internal/store/once"
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

// TestNodeThatResistsItsRemoval has whoever has a node's login hold what the node's removal needs: the login is out all the same, and the
// node with it.
func TestNodeThatResistsItsRemoval(t *testing.T) {
	t.Parallel()
	a, ctx := withLogins(t), t.Context()
	for _, name := range []string{"n2", "n3"} {
		m := a.withDatabase(name)
		waits, err := a.Clones.Join(ctx, m.in)
		must(t, err)
		_, err = a.Clones.Approve(ctx, a.admin, name, client.CloneApproval{Fingerprint: waits.Fingerprint})
		must(t, err)
	}
	const own = "UPDATE node SET report = report WHERE name = substr(session_user, 10)"
	a.resists("n2", "SET ROLE pki; BEGIN; "+own)
	a.resists("n3", "SET ROLE pki; BEGIN; "+own+"; INSERT INTO write_mark (node, number) VALUES ('n3', 1); SET ROLE NONE; ALTER ROLE chancery_n3 PASSWORD 'x'")
	for name, how := range map[string]clone.Removal{"n2": {Force: true}, "n3": {Compromised: true}} {
		must(t, a.Clones.Remove(ctx, a.admin, name, how, once.Call{}))
		if a.count(`SELECT COUNT(*) FROM node WHERE name = $1 AND state = 'gone' AND database_role = ''`, name) != 1 {
			t.Errorf("%s is not gone", name)
		}
	}
	if left := must1(t)(a.DB.Logins(ctx)); slices.Contains(left, "chancery_n2") || slices.Contains(left, "chancery_n3") {
		t.Errorf("the logins are %q", left)
	}
}
