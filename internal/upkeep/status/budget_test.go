package status_test

import (
	"crypto"
	"encoding/pem"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
	"chancery/internal/store/settings"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
	"chancery/internal/upkeep/status"
)

func must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// TestBudget has one thing after another be the first to end, up to when all is over.
func TestBudget(t *testing.T) {
	pkitest.EachURL(t, func(t *testing.T, url string) {
		s := opened(t, url)
		now := time.Now()
		look := func(at time.Time) status.Budget {
			t.Helper()
			return must[status.Budget](t)(status.BudgetOf(t.Context(), s, at))
		}
		first := func(what string, left time.Duration) {
			t.Helper()
			b := look(now)
			got, end, ok := b.Left(now)
			if !ok || !strings.Contains(end.What, what) || got.Round(time.Minute) != left {
				t.Errorf("it could be down for %s, until %q ends, and not for %s until %q: %+v", got, end.What, left, what, b)
			}
			if !slices.IsSortedFunc(b, func(x, y status.End) int { return x.At.Compare(y.At) }) {
				t.Errorf("not in order: %+v", b)
			}
		}
		kinds := func(at time.Time) (all []status.Kind) {
			for _, e := range look(at) {
				all = append(all, e.Kind)
			}
			slices.Sort(all)
			return all
		}
		serves := must[crypto.Signer](t)(keyfile.Generate(keyfile.ECDSAP256, 0))
		must[*ca.Certificate](t)(s.Identity.Serve(t.Context(), "node1", serves.Public(), []string{"dns:localhost"}))
		if b := look(now); !slices.ContainsFunc(b, func(e status.End) bool { return e.What == "the TLS certificate of node node1" }) {
			t.Errorf("the node is not named: %+v", b)
		}
		want := []status.Kind{status.EndIssuer, status.EndNode, status.EndOperator, status.EndCRL} // of an authority as init makes it; the roots have CRLs
		if got := kinds(now); !slices.Equal(got, want) {
			t.Errorf("at once %q end, not %q", got, want)
		}
		host := joined(t, s, "web1.example.com")
		first("", look(now)[0].At.Sub(now).Round(time.Minute))
		exec(t, s.DB, `UPDATE host SET identity_ends = $1 WHERE name = $2`, db.Micros(now.Add(-29*24*time.Hour-22*time.Hour)), host)
		first("the identity of the agent of host "+host, 2*time.Hour)
		exec(t, s.DB, `UPDATE host_placement SET crl_ends = $1`, db.Micros(now.Add(time.Hour)))
		first("a CRL of placement plain of host "+host, time.Hour)
		exec(t, s.DB, `UPDATE host_placement SET not_after = $1`, db.Micros(now.Add(30*time.Minute)))
		first("the certificate of placement plain of host "+host, 30*time.Minute)
		exec(t, s.DB, `UPDATE host_placement SET not_after = $1`, db.Micros(now.Add(-time.Minute)))
		first("a CRL of placement plain of host "+host, time.Hour) // what has ended hides nothing
		exec(t, s.DB, `UPDATE crl SET next_update = $1`, db.Micros(now.Add(10*time.Minute)))
		first("the CRL of issuer ", 10*time.Minute)
		set := *must[*settings.Settings](t)(s.Settings.Get(t.Context()))
		set.PublicURL, set.OCSP.Validity = "http://ca.example.com", settings.Duration(5*time.Minute)
		must[*settings.Settings](t)(s.Settings.Set(t.Context(), "test", set, once.Call{}))
		first("an OCSP answer", 5*time.Minute)
		exec(t, s.DB, `INSERT INTO ocsp_responder (id, issuer, key_id, certificate, not_before, not_after) SELECT 'r', id, '', $1, 0, $2 FROM issuer WHERE name = 'default'`,
			[]byte{0x30}, db.Micros(now.Add(3*time.Minute)))
		first("the certificate of the OCSP responder of issuer default", 3*time.Minute)
		if err := s.Hosts.Remove(t.Context(), admin, host, "", ""); err != nil {
			t.Fatal(err)
		}
		for _, e := range look(now) {
			if strings.Contains(e.What, host) {
				t.Errorf("a host that was removed counts: %+v", e)
			}
		}
		if got := look(now.AddDate(100, 0, 0)); len(got) != 1 || got[0].Kind != status.EndAnswer {
			t.Errorf("in a hundred years: %+v", got)
		}
	})
}

var admin = access.Principal{ID: "ada", Name: "ada", Kind: access.KindOperator, Roles: []access.Role{access.Admin}}

// opened is an authority that init made on an engine.
func opened(t *testing.T, url string) *setup.Services {
	t.Helper()
	dir := datadir.Dir(filepath.Join(t.TempDir(), "d"))
	o := setup.Options{Dir: dir, Passphrase: []byte("correct horse battery staple")}
	if strings.HasPrefix(url, "postgres") {
		o.DatabaseFile = filepath.Join(t.TempDir(), "url")
		if err := os.WriteFile(o.DatabaseFile, []byte(url+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	must[*setup.Result](t)(setup.Init(t.Context(), o))
	s := must[*setup.Services](t)(setup.Open(t.Context(), dir, must[*datadir.Config](t)(dir.Load()), slog.New(slog.DiscardHandler)))
	t.Cleanup(func() { s.DB.Close() })
	return s
}

// joined is a host with a placement, as which a machine has joined.
func joined(t *testing.T, s *setup.Services, name string) string {
	t.Helper()
	token := must[*client.HostToken](t)(s.Hosts.Add(t.Context(), admin, client.AddHostRequest{
		Name: name, Placements: []client.PlacementOrder{{Recipe: "plain", Parameters: map[string]string{"key": "/etc/ssl/x.key", "cert": "/etc/ssl/x.pem"}}},
	}, ""))
	key := must[crypto.Signer](t)(keyfile.Generate(keyfile.ECDSAP256, 0))
	der := must[[]byte](t)(cert.CreateCSR(&cert.CSRTemplate{}, key))
	csr := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	must[*client.Joined](t)(s.Hosts.Join(t.Context(), client.JoinRequest{Token: token.Token, CSR: csr, Agent: "test"}))
	return name
}

// exec changes rows as time would.
func exec(t *testing.T, d *db.DB, query string, args ...any) {
	t.Helper()
	err := d.Tx(t.Context(), func(tx *db.Tx) error {
		_, err := tx.Exec(t.Context(), query, args...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
