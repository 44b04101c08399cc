package ca

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/crl"
	"chancery/internal/pkitest"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/settings"

	"pgregory.net/rapid"
)

// lifecycle is the state machine of certificates, beside what it should have come to.
type lifecycle struct {
	a       *authority
	known   map[int64]*model
	touched int64
	from    int64 // changes before this one are of earlier runs
	changes int
}

// model is what is expected of one certificate.
type model struct {
	serial  *big.Int
	state   State
	reason  crl.Reason
	since   time.Time
	replace bool
}

// TestLifecycle issues, renews, revokes, holds and releases in any order. However it goes: serials are unique, what was
// revoked for good is never good again, the CRL entries are exactly those of what is revoked or held, and the audit chain
// verifies.
func TestLifecycle(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		a.settingsWith(func(s *settings.Settings) { s.Limits.OperatorDuplicates = 1_000_000 })
		total := 0
		if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue { // more on request
			checks := "15"
			if testing.Short() {
				checks = "75" // rapid runs a fifth of them then, and shorter ones
			}
			check(t, f.Value.Set(checks))
			defer f.Value.Set(f.DefValue)
		}
		rapid.Check(t, func(r *rapid.T) {
			m := &lifecycle{a: a, known: map[int64]*model{}, from: a.count(`SELECT COALESCE(MAX(change), 0) FROM revocation_change`)}
			r.Repeat(map[string]func(*rapid.T){
				"issue":     m.issue,
				"renew":     m.renew,
				"revoke":    m.revoke,
				"hold":      m.hold,
				"release":   m.release,
				"not again": m.refuse,
				"":          m.checkTouched,
			})
			m.check(r)
			total += m.changes
		})
		least := 100
		if testing.Short() {
			least = 30
		}
		if total < least {
			t.Fatalf("%d steps ran; the test would prove nothing", total)
		}
		findings, verified, err := a.audit.Verify(context.Background(), audit.Evidence{})
		if err != nil || len(findings) > 0 || verified.Events < int64(total) {
			t.Errorf("audit: %v in %+v, %v", findings, verified, err)
		}
		if n := a.count(`SELECT COUNT(*) FROM (SELECT serial, issuer FROM certificate GROUP BY serial, issuer HAVING COUNT(*) > 1) d`); n != 0 {
			t.Errorf("%d serials were used twice", n)
		}
	})
}

func (m *lifecycle) add(r *rapid.T, c *Certificate) {
	for _, other := range m.known {
		if other.serial.Cmp(c.Serial) == 0 {
			r.Fatalf("serial %x was used twice", c.Serial)
		}
	}
	m.known[c.ID] = &model{serial: c.Serial, state: Valid}
	m.touched = c.ID
	m.changes++
}

func (m *lifecycle) issue(r *rapid.T) {
	name := fmt.Sprintf("dns:h%d.example.com", rapid.IntRange(0, 5).Draw(r, "host"))
	c, err := m.a.Issue(context.Background(), admin(), Order{Profile: "server", CSR: csr(m.a.t, newKey(m.a.t), name)})
	if err != nil {
		r.Fatal(err)
	}
	m.add(r, c)
}

// pick draws a certificate in one of the states, and skips the step where there is none.
func (m *lifecycle) pick(r *rapid.T, states ...State) (int64, *model) {
	var ids []int64
	for _, id := range slices.Sorted(maps.Keys(m.known)) {
		if slices.Contains(states, m.known[id].state) {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		r.Skip("no certificate in such a state")
	}
	id := rapid.SampledFrom(ids).Draw(r, "certificate")
	m.touched = id
	return id, m.known[id]
}

func (m *lifecycle) renew(r *rapid.T) {
	_, old := m.pick(r, Valid)
	c, err := m.a.Renew(context.Background(), admin(), Ref{Serial: old.serial}, RenewOrder{})
	if err != nil {
		r.Fatal(err)
	}
	old.replace = true
	m.add(r, c)
}

func (m *lifecycle) revoke(r *rapid.T) {
	_, old := m.pick(r, Valid, Held)
	reasons := slices.DeleteFunc(crl.Reasons(), func(v crl.Reason) bool { return v == crl.CertificateHold || v == crl.KeyCompromise })
	reason := rapid.SampledFrom(reasons).Draw(r, "reason")
	c, err := m.a.Revoke(context.Background(), officer(), Ref{Serial: old.serial}, RevokeOrder{Reason: reason})
	if err != nil {
		r.Fatal(err)
	}
	if old.state == Held && !c.Revocation.RevokedAt.Equal(old.since) {
		r.Fatalf("held since %v, revoked since %v", old.since, c.Revocation.RevokedAt)
	}
	old.state, old.reason, old.since = Revoked, reason, c.Revocation.RevokedAt
	m.changes++
}

func (m *lifecycle) hold(r *rapid.T) {
	_, old := m.pick(r, Valid)
	c, err := m.a.Hold(context.Background(), officer(), Ref{Serial: old.serial}, "")
	if err != nil {
		r.Fatal(err)
	}
	old.state, old.reason, old.since = Held, crl.CertificateHold, c.Revocation.RevokedAt
	m.changes++
}

func (m *lifecycle) release(r *rapid.T) {
	_, old := m.pick(r, Held)
	if _, err := m.a.Release(context.Background(), officer(), Ref{Serial: old.serial}, ""); err != nil {
		r.Fatal(err)
	}
	old.state = Valid
	m.changes++
}

// refuse tries what must not be done to a revoked certificate.
func (m *lifecycle) refuse(r *rapid.T) {
	_, old := m.pick(r, Revoked)
	ctx, ref := context.Background(), Ref{Serial: old.serial}
	for what, err := range map[string]error{
		"revoke":  second(m.a.Revoke(ctx, officer(), ref, RevokeOrder{})),
		"hold":    second(m.a.Hold(ctx, officer(), ref, "")),
		"release": second(m.a.Release(ctx, officer(), ref, "")),
		"renew":   second(m.a.Renew(ctx, officer(), ref, RenewOrder{})),
	} {
		if !fault.Is(err, fault.Conflict) {
			r.Fatalf("%s a revoked certificate: %v", what, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// checkTouched compares the record that the step was about with the model.
func (m *lifecycle) checkTouched(r *rapid.T) {
	if want := m.known[m.touched]; want != nil {
		m.compare(r, m.touched, want)
	}
}

func (m *lifecycle) compare(r *rapid.T, id int64, want *model) {
	c, err := m.a.ByID(context.Background(), admin(), id)
	if err != nil {
		r.Fatal(err)
	}
	if c.State != want.state || (c.ReplacedBy != 0) != want.replace {
		r.Fatalf("certificate %d is %s (replaced by %d), want %s", id, c.State, c.ReplacedBy, want.state)
	}
	if (c.Revocation != nil) != (want.state != Valid) {
		r.Fatalf("certificate %d is %s with revocation %v", id, c.State, c.Revocation)
	}
}

// check compares all records, and the CRL entries, with the model.
func (m *lifecycle) check(r *rapid.T) {
	ctx := context.Background()
	wanted := map[string]crl.Reason{}
	for id, want := range m.known {
		m.compare(r, id, want)
		if want.state != Valid {
			wanted[want.serial.String()] = want.reason
		}
	}
	var last int64
	err := m.a.db.Read(ctx, func(tx *db.Tx) error {
		for changed, err := range EachChange(ctx, tx, m.a.issuer, Changes{Partition: -1, After: m.from}) {
			if err != nil {
				return err
			}
			if changed.Change <= last {
				r.Fatalf("change %d follows %d", changed.Change, last)
			}
			last = changed.Change
			entry, err := crl.ParseEntry(changed.Entry)
			if err != nil {
				return err
			}
			reason, here := wanted[entry.Serial.String()]
			switch {
			case changed.State == Valid && entry.Reason != crl.RemoveFromCRL, here && changed.State == Valid:
				r.Fatalf("entry %+v of state %s", entry, changed.State)
			case here && entry.Reason != reason:
				r.Fatalf("entry %+v, want reason %s", entry, reason)
			}
			delete(wanted, entry.Serial.String())
		}
		newest, err := LastChanges(ctx, tx)
		if err == nil && newest[m.a.issuer.ID] != max(last, m.from) {
			r.Fatalf("the last change is %d, and says %d", last, newest[m.a.issuer.ID])
		}
		return err
	})
	if err != nil {
		r.Fatal(err)
	}
	if len(wanted) > 0 {
		r.Fatalf("%d revoked certificates have no CRL entry", len(wanted))
	}
}

// TestRevokeRefusals names the reasons that are none.
func TestRevokeRefusals(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		ctx := context.Background()
		c := a.server("dns:a.example.com")
		ref := Ref{Serial: c.Serial}
		for _, order := range []RevokeOrder{
			{Reason: crl.RemoveFromCRL}, {Reason: 7}, {Reason: 11}, {Reason: -1}, {InvalidityDate: time.Now().Add(time.Hour)},
		} {
			_, err := a.Revoke(ctx, officer(), ref, order)
			refusedAs(t, err, fault.Invalid)
		}
		_, err := a.Revoke(ctx, officer(), Ref{}, RevokeOrder{})
		refusedAs(t, err, fault.Invalid)
		_, err = a.Revoke(ctx, officer(), Ref{Serial: big.NewInt(99)}, RevokeOrder{})
		refusedAs(t, err, fault.NotFound)
		_, err = a.Revoke(ctx, host("stranger"), ref, RevokeOrder{})
		refusedAs(t, err, fault.NotFound)
		_, err = a.Release(ctx, officer(), ref, "")
		refusedAs(t, err, fault.Conflict)
		if got := must[*Certificate](t)(a.Find(ctx, admin(), ref)); got.State != Valid {
			t.Errorf("it is %s", got.State)
		}
	})
}

// TestOwnCertificates lets a host revoke what it requested, and hides what others did.
func TestOwnCertificates(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		ctx := context.Background()
		h := host("h1.example.com")
		own := must[*Certificate](t)(a.Issue(ctx, h, Order{Profile: "server", CSR: csr(t, newKey(t), "dns:h1.example.com")}))
		other := a.server("dns:h1.example.com")
		_, err := a.Find(ctx, h, Ref{Serial: other.Serial})
		refusedAs(t, err, fault.NotFound)
		_, err = a.Renew(ctx, h, Ref{Serial: other.Serial}, RenewOrder{})
		refusedAs(t, err, fault.NotFound)
		found, _, err := a.Search(ctx, h, Filter{Name: "h1.example.com"}, "", 10)
		if err != nil || len(found) != 1 || found[0].ID != own.ID {
			t.Errorf("a host sees %d certificates, %v", len(found), err)
		}
		revoked := must[*Certificate](t)(a.Revoke(ctx, h, Ref{Serial: own.Serial}, RevokeOrder{Reason: crl.KeyCompromise}))
		if revoked.State != Revoked {
			t.Errorf("it is %s", revoked.State)
		}
	})
}

// TestCompromisedKey is never certified again, whoever asks for whatever name.
func TestCompromisedKey(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		ctx := context.Background()
		key := newKey(t)
		order := Order{Profile: "server", CSR: csr(t, key, "dns:a.example.com")}
		c := must[*Certificate](t)(a.Issue(ctx, admin(), order))
		twin := must[*Certificate](t)(a.Issue(ctx, admin(), order))
		must[*Certificate](t)(a.Revoke(ctx, officer(), Ref{Serial: c.Serial}, RevokeOrder{Reason: crl.KeyCompromise, InvalidityDate: time.Now().Add(-time.Hour)}))
		_, err := a.Issue(ctx, admin(), Order{Profile: "client", CSR: csr(t, key, "dns:b.example.com")})
		refusedAs(t, err, fault.Denied)
		_, err = a.DryRun(ctx, admin(), order)
		refusedAs(t, err, fault.Denied)
		_, err = a.Renew(ctx, admin(), Ref{Serial: twin.Serial}, RenewOrder{})
		refusedAs(t, err, fault.Denied)
		fresh := must[*Certificate](t)(a.Rekey(ctx, admin(), Ref{Serial: twin.Serial}, csr(t, newKey(t)), nil, RenewOrder{}))
		if fresh.Replaces != twin.ID || fresh.Names()[0].Value != "a.example.com" {
			t.Errorf("re-keyed %+v", fresh)
		}
		_, err = a.Rekey(ctx, admin(), Ref{Serial: fresh.Serial}, nil, fresh.PublicKey(), RenewOrder{})
		refusedAs(t, err, fault.Invalid)
		_, err = a.Rekey(ctx, admin(), Ref{Serial: fresh.Serial}, csr(t, newKey(t), "dns:other.example.com"), nil, RenewOrder{})
		refusedAs(t, err, fault.Invalid)
	})
}
