package host_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
)

func TestJoinTokens(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), t.Context()
		made := a.add(client.AddHostRequest{Name: "web1"})
		token := must[*client.JoinToken](t)(client.ParseJoinToken(made.Token))
		roots := must[string](t)(a.Hosts.Roots(ctx))
		if token.Address != "https://ca.example.com:8443" || !strings.Contains(roots, "CERTIFICATE") || len(token.Secret) < 43 {
			t.Fatalf("the token says %+v", token)
		}

		// The same key gets the same answer, as often as it asks, at once too.
		in := client.JoinRequest{Token: made.Token, CSR: newCSR(t), Agent: "1"}
		answers := make([]*client.Joined, 8)
		var group sync.WaitGroup
		for i := range answers {
			group.Go(func() { answers[i], _ = a.Hosts.Join(ctx, in) })
		}
		group.Wait()
		first := must[*client.Joined](t)(a.Hosts.Join(ctx, in))
		for _, again := range answers {
			if again == nil || *again != *first {
				t.Fatalf("joined again as %+v, first as %+v", again, first)
			}
		}
		if n := a.events("host.join"); n != 1 {
			t.Fatalf("the audit has %d joins", n)
		}

		// Another key does not, and leaves a trace, though not an endless one.
		for range 15 {
			_, err := a.Hosts.Join(ctx, client.JoinRequest{Token: made.Token, CSR: newCSR(t)})
			refused(t, err, fault.Denied, "was redeemed by another key already")
		}
		if n := a.events("host.join-refused"); n != 10 {
			t.Fatalf("the audit has %d refused joins", n)
		}
		if h := a.host("web1"); !strings.Contains(h.Message, "shown again with another key") {
			t.Fatalf("shown: %+v", h)
		}
		a.add(client.AddHostRequest{Name: "aaa"})
		web1 := must[access.Principal](t)(a.Access.PrincipalNamed(ctx, "web1"))
		check(t, a.Hosts.Report(ctx, web1, client.Report{Agent: "2"}))
		if found, _, err := a.Hosts.List(ctx, operator, client.HostFilter{}, "", 10); err != nil || found[0].Name != "web1" {
			t.Fatalf("whose token was misused is not listed first: %+v, %v", found, err)
		}

		// What was never a token, or is one no longer.
		text := made.Token
		for name, bad := range map[string]string{"nothing": "", "a word": "letmein", "cut": text[:len(text)-8], "another secret": guess(token)} {
			_, err := a.Hosts.Join(ctx, client.JoinRequest{Token: bad, CSR: newCSR(t)})
			if !fault.Is(err, fault.Unauthenticated) {
				t.Errorf("%s: %v", name, err)
			}
		}
		old := a.add(client.AddHostRequest{Name: "web2"})
		newer := must[*client.HostToken](t)(a.Hosts.NewToken(ctx, operator, "web2", client.HostTokenRequest{}, ""))
		_, err := a.Hosts.Join(ctx, client.JoinRequest{Token: old.Token, CSR: newCSR(t)})
		refused(t, err, fault.Unauthenticated, "replaced by a later one")
		a.exec(`UPDATE host_token SET expires = $1 WHERE spki = $2`, db.Micros(time.Now().Add(-time.Second)), []byte{})
		_, err = a.Hosts.Join(ctx, client.JoinRequest{Token: newer.Token, CSR: newCSR(t)})
		refused(t, err, fault.Denied, "this join token ended at")
		removed := a.add(client.AddHostRequest{Name: "web3"})
		check(t, a.Hosts.Remove(ctx, operator, "web3", "", ""))
		_, err = a.Hosts.Join(ctx, client.JoinRequest{Token: removed.Token, CSR: newCSR(t)})
		refused(t, err, fault.Unauthenticated, "its host was removed")
		_, err = a.Hosts.NewToken(ctx, operator, "web1", client.HostTokenRequest{}, "")
		refused(t, err, fault.Conflict, "host web1 is joined")

		// The key of another host's identity is no key for this one.
		other := a.add(client.AddHostRequest{Name: "web4"})
		_, err = a.Hosts.Join(ctx, client.JoinRequest{Token: other.Token, CSR: in.CSR})
		refused(t, err, fault.Conflict, "identity of another principal")
		_, err = a.Hosts.Join(ctx, client.JoinRequest{Token: other.Token, CSR: "no request"})
		refused(t, err, fault.Invalid, "")
	})
}

// guess is a token that is right in everything but its secret.
func guess(token *client.JoinToken) string {
	other := *token
	other.Secret = strings.Repeat("A", len(token.Secret))
	return other.String()
}

// TestSecretsAreStoredNowhere looks for a token's secret in all that the database and the audit hold.
func TestSecretsAreStoredNowhere(t *testing.T) {
	a, ctx := newAuthority(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)})), t.Context()
	made, err := a.Hosts.Add(ctx, operator, client.AddHostRequest{Name: "web1"}, "key-1")
	check(t, err)
	secret := must[*client.JoinToken](t)(client.ParseJoinToken(made.Token)).Secret
	a.redeem(made.Token)
	for _, err := range []error{
		second(a.Hosts.Show(ctx, operator, made.Token)), second(a.Hosts.Add(ctx, operator, client.AddHostRequest{Name: made.Token}, "")),
		a.Hosts.Remove(ctx, operator, made.Token, "", ""),
	} {
		if err == nil || strings.Contains(err.Error(), made.Token[len(made.Token)-40:]) {
			t.Errorf("a token where a name belongs: %v", err)
		}
	}
	looked := 0
	check(t, a.DB.Read(ctx, func(tx *db.Tx) error {
		for _, query := range []string{
			`SELECT id || ' ' || hex(hash) || ' ' || CAST(hash AS TEXT) FROM host_token`, `SELECT CAST(response AS TEXT) || hex(response) FROM once`,
			`SELECT CAST(detail AS TEXT) FROM audit_event`,
		} {
			rows, err := tx.Query(ctx, query)
			if err != nil {
				return err
			}
			for rows.Next() {
				var text string
				if err := rows.Scan(&text); err != nil {
					return err
				}
				if looked++; strings.Contains(text, secret) || strings.Contains(strings.ToLower(text), fmt.Sprintf("%x", secret)) {
					t.Errorf("%s holds the secret", query)
				}
			}
			if err := rows.Close(); err != nil {
				return err
			}
		}
		return nil
	}))
	if looked < 5 {
		t.Fatalf("looked at %d rows", looked)
	}
}

// second is the error of two values.
func second[T any](_ T, err error) error { return err }

// renew renews an identity as an agent does, with a new key, which the machine shows from then on.
func (a *authority) renew(m *machine, generation int64, csr, key string) (*client.Joined, error) {
	joined, err := a.Hosts.RenewIdentity(a.t.Context(), m.principal, client.RenewIdentityRequest{CSR: csr, Generation: generation}, key)
	if err == nil {
		m.principal = m.principal.Showing((&machine{joined: joined}).certificate(a.t).RawSubjectPublicKeyInfo)
	}
	return joined, err
}

func TestIdentityIsRenewed(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), t.Context()
		m := a.join(client.AddHostRequest{Name: "web1"})
		before := m.certificate(t)
		csr := newCSR(t)
		second := must[*client.Joined](t)(a.renew(m, 1, csr, "k1"))
		if again := must[*client.Joined](t)(a.renew(m, 1, csr, "k1")); *again != *second || second.Generation != 2 {
			t.Fatalf("repeated: %+v, first %+v", again, second)
		}
		// The agent lost the idempotency key too, but has the new key: no copy of the old identity does.
		if again := must[*client.Joined](t)(a.renew(m, 1, csr, "k2")); *again != *second {
			t.Fatalf("repeated without its key: %+v, first %+v", again, second)
		}
		// The identity before goes on proving the host until the next renewal, and not longer.
		check(t, a.Identity.Good(ctx, a.identityIssuer(), before.SerialNumber))
		third := must[*client.Joined](t)(a.renew(m, 2, newCSR(t), "k3"))
		if third.Generation != 3 {
			t.Fatalf("third: %+v", third)
		}
		if err := a.Identity.Good(ctx, a.identityIssuer(), before.SerialNumber); err == nil {
			t.Fatal("the first identity is good after two renewals")
		}
		if h := a.host("web1"); h.State != client.HostJoined {
			t.Fatalf("renewed: %+v", h)
		}
		// Even the first answer can be had again, by its key.
		if again := must[*client.Joined](t)(a.renew(m, 1, csr, "k1")); again.Certificate != second.Certificate || again.Generation != 2 {
			t.Fatalf("the first renewal, repeated late: %+v", again)
		}
	})
}

func TestCloneIsExposed(t *testing.T) {
	plays := map[string]func(t *testing.T, a *authority, m *machine) error{
		"a snapshot that was put back": func(t *testing.T, a *authority, m *machine) error {
			must[*client.Joined](t)(a.renew(m, 1, newCSR(t), "k1"))
			must[*client.Joined](t)(a.renew(m, 2, newCSR(t), "k2"))
			_, err := a.renew(m, 1, newCSR(t), "k3")
			return err
		},
		"two that renew, each with a new key": func(t *testing.T, a *authority, m *machine) error {
			must[*client.Joined](t)(a.renew(m, 1, newCSR(t), "k1"))
			_, err := a.renew(m, 1, newCSR(t), "k2")
			return err
		},
		"two that renew with the key that both have": func(t *testing.T, a *authority, m *machine) error {
			must[*client.Joined](t)(a.renew(m, 1, m.csr, "k1"))
			_, err := a.renew(m, 1, m.csr, "k2")
			return err
		},
		"a copy that shows the key before, and the right number": func(t *testing.T, a *authority, m *machine) error {
			copied := *m
			must[*client.Joined](t)(a.renew(m, 1, newCSR(t), "k1"))
			_, err := a.renew(&copied, 2, newCSR(t), "k2")
			return err
		},
		"a number from the future": func(t *testing.T, a *authority, m *machine) error {
			_, err := a.renew(m, 9, newCSR(t), "k1")
			return err
		},
	}
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, n := newAuthority(t, d), 0
		for name, play := range plays {
			t.Run(name, func(t *testing.T) {
				ctx := t.Context()
				a.t = t
				n++
				web := fmt.Sprintf("web%d", n)
				m := a.join(client.AddHostRequest{Name: web})
				held := must[*ca.Certificate](t)(a.issue(m, ca.Order{}, web))
				refused(t, play(t, a, m), fault.Denied, "two machines used one identity")
				if h := a.host(web); h.State != client.HostSuspect || !strings.Contains(h.Message, "two machines used one identity") {
					t.Fatalf("shown: %+v", h)
				}
				if got := a.events("host.suspect"); got != n {
					t.Fatalf("the audit has %d suspicions, want %d", got, n)
				}
				_, err := a.issue(m, ca.Order{}, web)
				refused(t, err, fault.Denied, "is suspect, and nothing is issued to it")
				_, err = a.renew(m, 2, newCSR(t), "k9")
				refused(t, err, fault.Denied, "")
				refused(t, d.Tx(ctx, func(tx *db.Tx) error { return a.Hosts.AdmitHost(ctx, tx, m.principal, "server") }), fault.Denied, "suspect")
				// What it holds stays good until somebody decides; a replacement ends it, and the suspicion.
				if got := a.state(held); got != "valid" {
					t.Fatalf("its certificate is %s", got)
				}
				c, err := a.Hosts.Count(ctx, time.Now())
				if check(t, err); c.Suspect != 1 {
					t.Fatalf("counted %+v", c)
				}
				made := must[*client.HostToken](t)(a.Hosts.Replace(ctx, operator, web, client.ReplaceHostRequest{}, ""))
				next := a.redeem(made.Token)
				must[*ca.Certificate](t)(a.issue(next, ca.Order{}, web))
				if h := a.host(web); h.State != client.HostJoined || h.Message != "" {
					t.Fatalf("replaced: %+v", h)
				}
				if got := a.state(held); got != "revoked superseded" {
					t.Fatalf("the certificate of the suspect is %s", got)
				}
			})
		}
	})
}

func TestCompromisedMachineIsEndedAtOnce(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), t.Context()
		m := a.join(client.AddHostRequest{Name: "web1"})
		held := must[*ca.Certificate](t)(a.issue(m, ca.Order{}, "web1"))
		made := must[*client.HostToken](t)(a.Hosts.Replace(ctx, operator, "web1", client.ReplaceHostRequest{Reason: "keyCompromise"}, ""))
		if got := a.state(held); got != "revoked keyCompromise" {
			t.Fatalf("its certificate is %s", got)
		}
		_, err := a.Hosts.Desired(ctx, m.principal, "", 0)
		refused(t, err, fault.Denied, "no host here")
		if h := a.host("web1"); h.State != client.HostPending || h.TokenExpires.IsZero() {
			t.Fatalf("shown: %+v", h)
		}
		// The compromised key is no identity any more, whoever shows it.
		_, err = a.Hosts.Join(ctx, client.JoinRequest{Token: made.Token, CSR: m.csr})
		refused(t, err, fault.Denied, "keyCompromise")
		a.redeem(made.Token)
	})
}

func TestActorsInTheAudit(t *testing.T) {
	a := newAuthority(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}))
	m := a.join(client.AddHostRequest{Name: "web1"})
	must[*client.Joined](t)(a.renew(m, 1, newCSR(t), ""))
	for action, actor := range map[string]string{"host.add": "operator:otto", "host.token": "operator:otto", "host.join": "host:web1", "host.renew": "host:web1"} {
		found := must[audit.Page](t)(a.Audit.Search(t.Context(), audit.Filter{Action: action}, "", 10)).Events
		if len(found) != 1 || found[0].Actor != actor || found[0].Object != "web1" {
			t.Errorf("%s: %+v", action, found)
		}
	}
}
