package proof_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

func (a *authority) count(query string, args ...any) int64 {
	a.t.Helper()
	var n int64
	check(a.t, a.DB.Read(a.t.Context(), func(tx *db.Tx) error { return tx.QueryRow(a.t.Context(), query, args...).Scan(&n) }))
	return n
}

// TestTwinIsNeverGood cuts the call for a twin at each statement and at its commits, both ways. There is either no twin, or one
// that is revoked and listed for the next CRL, and the call that is repeated gets that one.
func TestTwinIsNeverGood(t *testing.T) {
	t.Parallel()
	pkitest.EachURL(t, func(t *testing.T, url string) {
		faults := new(pkitest.Faults)
		a := newAuthority(t, pkitest.Open(t, db.Options{URL: url, Wrap: faults.Wrap}))
		a.liftLimits()
		web := a.join("web1", "")
		cut, cases := 0, 0
		try := func(name string, fail func()) {
			t.Helper()
			cases++
			c := a.certificate("", newKey(t))
			a.revoke(c)
			p := a.start(c, client.ProveRequest{})
			csr := bare(t, newKey(t))
			fail()
			first, err := a.twin(web, p.ID, csr)
			faults.Clear()
			if err != nil {
				cut++
			}
			if n := a.count(`SELECT COUNT(*) FROM certificate WHERE profile = 'proof-twin' AND state <> 'revoked'`); n != 0 {
				t.Fatalf("%s: %d twins are good", name, n)
			}
			if n := a.count(`SELECT COUNT(*) FROM certificate c WHERE c.profile = 'proof-twin' AND NOT EXISTS
				(SELECT 1 FROM revocation r WHERE r.certificate = c.id AND r.state = 'revoked')`); n != 0 {
				t.Fatalf("%s: %d twins are on no list", name, n)
			}
			again := a.retry(func() (*client.ProofCertificate, error) { return a.twin(web, p.ID, csr) })
			if first != nil && first.Serial != again.Serial {
				t.Errorf("%s: the call got %s, repeated it got %s", name, first.Serial, again.Serial)
			}
			if n := a.count(`SELECT COUNT(*) FROM certificate WHERE profile = 'proof-twin' AND subject = $1 AND replaced_by = 0 AND id > $2`, c.Subject, c.ID); n != 1 {
				t.Errorf("%s: %d twins of one certificate", name, n)
			}
		}
		for n := 1; n <= 40; n++ {
			try(fmt.Sprintf("statement %d", n), func() { faults.FailStatement(n, errors.New("cut")) })
		}
		for _, outcome := range []pkitest.Outcome{pkitest.NotPersisted, pkitest.PersistedAnyway} {
			for _, failures := range []int{1, 2, 6} {
				try(fmt.Sprintf("commit, %s, %d times", outcome, failures), func() {
					for n := range failures {
						faults.FailCommit(n+1, outcome)
					}
				})
			}
		}
		if cases != 46 || cut < 10 {
			t.Fatalf("%d cases ran, and %d calls were cut", cases, cut)
		}
		a.clean()
	})
}

// retry asks until the database is back.
func (a *authority) retry(ask func() (*client.ProofCertificate, error)) *client.ProofCertificate {
	a.t.Helper()
	for until := time.Now().Add(2 * time.Minute); ; {
		got, err := ask()
		if err == nil {
			return got
		}
		if time.Now().After(until) {
			a.t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestStartTwice: a start that is repeated with its key is one proof, whatever became of its commit.
func TestStartTwice(t *testing.T) {
	t.Parallel()
	pkitest.EachURL(t, func(t *testing.T, url string) {
		faults := new(pkitest.Faults)
		a := newAuthority(t, pkitest.Open(t, db.Options{URL: url, Wrap: faults.Wrap}))
		a.join("web1", "")
		c := a.certificate("", newKey(t))
		a.revoke(c)
		for i, outcome := range []pkitest.Outcome{pkitest.NotPersisted, pkitest.PersistedAnyway} {
			call := once.Call{Caller: "api:olga", Key: fmt.Sprint(i), Request: once.Hash([]byte("prove"))}
			faults.FailCommit(1, outcome)
			_, err := a.Proofs.Start(t.Context(), officer, refOf(c), client.ProveRequest{}, call)
			if err == nil {
				t.Fatalf("%s: the commit was not cut", outcome)
			}
			faults.Clear()
			var id string
			for until := time.Now().Add(2 * time.Minute); id == ""; {
				if id, err = a.Proofs.Start(t.Context(), officer, refOf(c), client.ProveRequest{}, call); err != nil && time.Now().After(until) {
					t.Fatal(err)
				}
			}
			if n := a.count(`SELECT COUNT(*) FROM proof`); n != int64(i+1) {
				t.Errorf("%s: %d proofs", outcome, n)
			}
		}
		if n := a.count(`SELECT COUNT(*) FROM proof WHERE ends > $1`, db.Micros(time.Now())); n != 1 {
			t.Errorf("%d proofs run", n)
		}
	})
}

// TestPoolsThatTrust: whoever trusts what is above the issuer could be shown the certificate, so such hosts are named. They get
// neither a twin nor a good certificate of another pool, and the certificate authority gives them none either.
func TestPoolsThatTrust(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		a.join("web1", "")
		far := a.join("far1", "lab")
		desired(t, a, far) // its pool's trust is written
		root := must[*ca.Issuer](t)(a.CA.Issuer(t.Context(), "default-root"))
		a.exec(`INSERT INTO trust_entry (id, pool, purpose, kind, issuer, fingerprint, certificate, not_after, from_version, to_version, pruned_at, comment, created_at)
			VALUES ($1, 'lab', 'general', 'anchor', $2, $3, $4, $5, 1, 0, 0, '', 1)`, db.NewID(), root.ID, fmt.Sprintf("%x", client.Fingerprint(root.Certificate.Raw)),
			root.Certificate.Raw, db.Micros(root.Certificate.NotAfter))
		c := a.certificate("", newKey(t))
		a.revoke(c)
		p := a.start(c, client.ProveRequest{})
		if len(p.Trials) != 4 {
			t.Fatalf("%+v", p.Trials)
		}
		if !slices.Equal(p.Twins, []string{"web1"}) {
			t.Errorf("twins are for %v", p.Twins)
		}
		if told := desired(t, a, far).Proofs; len(told) != 1 || !strings.Contains(told[0].NoTwin, "it is of pool lab, which trusts issuer default of pool default") {
			t.Errorf("far1 is told %+v", told)
		}
		_, err := a.twin(far, p.ID, bare(t, newKey(t)))
		refused(t, err, fault.Denied, "twins stay within the issuer's pool")
		_, err = a.CA.IssueTwin(t.Context(), far.principal, refOf(c), []byte(bare(t, newKey(t))), nil)
		refused(t, err, fault.Denied, "a host gets certificates of its own pool only")
		check(t, a.Proofs.Report(t.Context(), far.principal, p.ID, client.ProofReport{Trials: []client.ProofTrial{
			{Placement: "nginx", Result: client.ProofNotTried, Untried: client.UntriedNoTwin, Detail: "its files hold CRL 7, which lists it"},
		}}))
		seen := must[*client.ProofResult](t)(a.Proofs.Show(t.Context(), officer, p.ID))
		if seen.Untried(client.UntriedOtherPool) != 1 || seen.Untried(client.UntriedNoTwin) != 0 {
			t.Errorf("%+v", seen.Trials)
		}
		_, err = a.control(far, p.ID, bare(t, newKey(t)))
		refused(t, err, fault.Denied, `is a host of pool "lab"`)
		if n := a.count(`SELECT COUNT(*) FROM certificate WHERE profile LIKE 'proof-%'`); n != 0 {
			t.Errorf("%d certificates were issued for the proof", n)
		}
		a.clean()
	})
}
