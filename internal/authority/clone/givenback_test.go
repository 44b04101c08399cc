package clone_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"chancery/client"
	"chancery/internal/authority/clone"
	"chancery/internal/fault"
	"chancery/internal/store/access"
	"chancery/internal/store/once"
)

// joins has a machine that asks for a login join and be approved, and returns its fingerprint.
func (a *authority) joins(m *machine) (fingerprint string) {
	a.t.Helper()
	waits, err := a.Clones.Join(a.t.Context(), m.in)
	must(a.t, err)
	must(a.t, a.approves(m.name, waits.Fingerprint))
	return waits.Fingerprint
}

func (a *authority) approves(name, fingerprint string) error {
	_, err := a.Clones.Approve(a.t.Context(), a.admin, name, client.CloneApproval{Fingerprint: fingerprint})
	return err
}

// enters counts the nodes' logins that are let in with the rights of a role.
func (a *authority) enters(login, as string) bool {
	a.t.Helper()
	return a.count(`SELECT COUNT(*) FROM pg_roles WHERE rolname = $1 AND rolcanlogin AND pg_has_role(oid, (SELECT oid FROM pg_roles WHERE rolname = $2), 'MEMBER')`,
		login, as) == 1
}

// TestLoginOfARemovalThatCameToNothing has the remover of a node end after it shut the node's login: another node gives it back, and nobody
// does what was taken away for good, or shut by the database's administrator.
func TestLoginOfARemovalThatCameToNothing(t *testing.T) {
	t.Parallel()
	a, ctx := withLogins(t), t.Context()
	two, near := a.withDatabase("n2"), a.machine("n4", a.invite("ocsp"))
	near.in.DatabaseCSR = two.in.DatabaseCSR
	three := a.withDatabase("n3")
	first := a.joins(two)
	third := a.joins(three)
	a.joins(near)
	root := a.as("chancery")

	// Each that looks waits for longer than a removal takes.
	now := time.Now()
	finish := func(after time.Duration) {
		t.Helper()
		now = now.Add(after)
		must(t, a.Clones.Finish(ctx, now))
	}
	for login, as := range map[string]string{"chancery_n2": "pki", "chancery_n4": "pki_reader"} {
		for range 2 { // called twice, the functions would remove it
			must(t, a.DB.ShutLogin(ctx, login))
		}
		for _, after := range []time.Duration{0, 80 * time.Second} {
			if finish(after); a.enters(login, as) {
				t.Errorf("%s is given back after %s: a removal may be at work", login, after)
			}
		}
		if finish(20 * time.Second); !a.enters(login, as) {
			t.Errorf("%s is not given back", login)
		}
	}
	if as := a.as("chancery_n4"); as.QueryRow(ctx, "SELECT COUNT(*) FROM node").Scan(new(int)) != nil {
		t.Error("who logs in does not read")
	}
	must(t, a.DB.ShutLogin(ctx, "chancery_n2"))
	must(t, a.approves("n2", first))
	if !a.enters("chancery_n2", "pki") {
		t.Error("approved again, its login is shut")
	}

	_, err := root.Exec(ctx, "ALTER ROLE chancery_n2 NOLOGIN")
	must(t, err)
	for range 3 {
		finish(time.Hour)
	}
	if a.enters("chancery_n2", "pki") {
		t.Error("what the database's administrator has shut is opened")
	}

	// A removal as compromised takes the login away before it does anything else, and then cannot end the node.
	a.exec(`INSERT INTO recipient_list SELECT version + 1, body, signature, created_at FROM recipient_list ORDER BY version DESC LIMIT 1`)
	err = a.Clones.Remove(ctx, a.admin, "n3", clone.Removal{Compromised: true}, once.Call{})
	refused(t, err, fault.Conflict, "is taken away and stays so", "list")
	a.exec(`DELETE FROM recipient_list WHERE version = (SELECT MAX(version) FROM recipient_list)`)
	for range 3 {
		finish(time.Hour)
	}
	refused(t, a.approves("n3", third), fault.Conflict, "chancery_n3, was taken away")
	by := access.Principal{ID: a.principal("n3"), Name: "n3", Kind: access.KindNode}
	renewing := client.CloneIdentity{DatabaseCSR: three.in.DatabaseCSR}
	_, err = a.Clones.RenewIdentity(ctx, by, renewing, "")
	refused(t, err, fault.Conflict, "chancery_n3, was taken away")
	both := client.CloneIdentity{CSR: a.machine("n3", &client.CloneToken{}).in.CSR, DatabaseCSR: three.in.DatabaseCSR}
	renewed, err := a.Clones.RenewIdentity(ctx, by, both, "")
	must(t, err)
	if leaf(t, renewed.Certificate).Subject.CommonName != "n3" || renewed.DatabaseRole != "" || len(renewed.DatabaseCertificate) > 0 || renewed.DatabaseRoots != "" {
		t.Errorf("asked for both, it gets %+v", renewed)
	}
	if n := a.count(`SELECT COUNT(*) FROM pg_roles WHERE rolname = 'chancery_n3'`); n != 0 {
		t.Error("a compromised node has its login again")
	}
	must(t, a.Clones.Remove(ctx, a.admin, "n3", clone.Removal{Compromised: true}, once.Call{}))

	// It is taken away in the middle of a renewal that the node asks for.
	real := a.Clones.OpenLogin
	a.Clones.OpenLogin = func(ctx context.Context, by access.Principal, node, csr string) (clone.Login, error) {
		must(t, a.DB.DropLogin(ctx, "chancery_n4"))
		return real(ctx, by, node, csr)
	}
	by = access.Principal{ID: a.principal("n4"), Name: "n4", Kind: access.KindNode}
	_, err = a.Clones.RenewIdentity(ctx, by, renewing, "")
	refused(t, err, fault.Conflict, "chancery_n4, was taken away")
	if n := a.count(`SELECT COUNT(*) FROM pg_roles WHERE rolname = 'chancery_n4'`); n != 0 {
		t.Error("it is made anew")
	}
}

func (a *authority) principal(node string) (id string) {
	a.t.Helper()
	must(a.t, a.as("chancery").QueryRow(a.t.Context(), `SELECT principal FROM node WHERE name = $1`, node).Scan(&id))
	return id
}

// as logs in at the database.
func (a *authority) as(role string) *pgx.Conn {
	a.t.Helper()
	conn, err := pgx.Connect(a.t.Context(), strings.Replace(a.url, "//chancery_n1@", "//"+role+"@", 1))
	must(a.t, err)
	a.t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(a.t.Context())) })
	return conn
}

// heldByOthers has an administrator hold what the removal of a node needs, that the node does not: it is refused and says who that is, and the
// node's sessions go on.
func (a *authority) heldByOthers(node string) {
	a.t.Helper()
	ctx, root, own := a.t.Context(), a.as("chancery"), a.as("chancery_"+node)
	_, err := root.Exec(ctx, "BEGIN; SELECT 1 FROM node WHERE name = '"+node+"' FOR UPDATE")
	must(a.t, err)
	_, err = own.Exec(ctx, "BEGIN")
	must(a.t, err)
	err = a.Clones.Remove(ctx, a.admin, node, clone.Removal{Force: true}, once.Call{})
	refused(a.t, err, fault.Unavailable, " of chancery, ")
	if _, err := own.Exec(ctx, "COMMIT"); err != nil || !a.enters("chancery_"+node, "pki") {
		a.t.Errorf("its login was shut, though it held nothing: %v", err)
	}
	_, err = root.Exec(ctx, "ROLLBACK")
	must(a.t, errors.Join(err, root.Close(ctx), own.Close(ctx)))
}
