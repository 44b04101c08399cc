package trust_test

import (
	"crypto/x509"
	"math/big"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/fleet/pool"
	"chancery/internal/fleet/trust"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/pkitest"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

func (a *authority) drop(id, because string) error {
	return a.Trust.Drop(a.t.Context(), admin, pool.Default, id, client.DropTrustRequest{Because: because}, once.Call{})
}

// TestDropIsHeldByWhoReliesOnIt takes entries out: refused while hosts present certificates under them, or while there are good
// ones that nothing replaced, each of which is named; done where a reason is given, which the audit keeps.
func TestDropIsHeldByWhoReliesOnIt(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), t.Context()
		m := a.join(client.AddHostRequest{Name: "web1.example", Placements: []client.PlacementOrder{{Name: "front", Recipe: "local/x"}}})
		root := trust.Fingerprint(must[*ca.Issuer](t)(a.CA.Issuer(ctx, "default-root")).Certificate)
		issuer := trust.Fingerprint(must[*ca.Issuer](t)(a.CA.Issuer(ctx, "default")).Certificate)
		a.of(0)
		refused(t, a.drop(root, ""), fault.Conflict, `issuer "default" is the default of the pool`)
		issued := a.issue(m)
		serial := cert.FormatSerial(issued.Serial)
		refused(t, a.drop(root, ""), fault.Conflict, serial)
		refused(t, a.drop(issuer[:12], " "), fault.Conflict, serial)
		refused(t, a.drop(issuer[:11], ""), fault.NotFound, "no trust entry")
		a.report(m, client.Observation{Placement: "front", Serial: serial, Issuer: issuer, Trust: 1})
		refused(t, a.drop(root, ""), fault.Conflict, "presented by web1.example (front)")
		// Others of the pool are made and drop freely, with what they hold replaced or revoked.
		made, _, err := a.CA.CreateIssuer(ctx, system, ca.IssuerSpec{Name: "side", Pool: pool.Default, Parent: "default-root", Subject: "CN=side"})
		check(t, err)
		spki := must[[]byte](t)(cert.MarshalPublicKey(newKey(t).Public()))
		other := must[*ca.Certificate](t)(a.CA.Issue(ctx, admin, ca.Order{Issuer: "side", Profile: "server", PublicKey: spki, Names: []string{"dns:x.example"}}))
		side := trust.Fingerprint(made.Certificate)
		refused(t, a.drop(side, ""), fault.Conflict, cert.FormatSerial(other.Serial))
		must[*ca.Certificate](t)(a.CA.Rekey(ctx, admin, ca.Ref{Serial: other.Serial}, nil, must[[]byte](t)(cert.MarshalPublicKey(newKey(t).Public())), ca.RenewOrder{}))
		again := must[[]*ca.Certificate](t)(first(a.CA.Search(ctx, system, ca.Filter{Issuer: "side", State: ca.Valid, Unreplaced: true}, "", 10)))
		if len(again) != 1 {
			t.Fatalf("%d certificates of side are not replaced", len(again))
		}
		refused(t, a.drop(side, ""), fault.Conflict, cert.FormatSerial(again[0].Serial))
		must[*ca.Certificate](t)(a.CA.Revoke(ctx, system, ca.Ref{Serial: again[0].Serial}, ca.RevokeOrder{}))
		call := once.Call{Caller: "api:alice", Key: "k", Request: []byte("r")}
		for range 2 { // repeated with its key
			check(t, a.Trust.Drop(ctx, admin, pool.Default, side, client.DropTrustRequest{}, call))
		}
		refused(t, a.drop(side, ""), fault.Conflict, "has left")
		version := a.of(0).Version
		check(t, a.drop(root, "the key was stolen"))
		if sets := a.of(0); sets.Version <= version || len(sets.General.Anchors) != 0 {
			t.Fatalf("version %d of %d has %d anchors", sets.Version, version, len(sets.General.Anchors))
		}
		events := must[audit.Page](t)(a.Audit.Search(ctx, audit.Filter{Action: "trust.drop"}, "", 10)).Events
		if len(events) != 2 {
			t.Fatalf("%d events", len(events))
		}
		said := string(must[[]byte](t)(events[1].MarshalJSON()))
		for _, want := range []string{"the key was stolen", "web1.example (front)", serial} {
			if !strings.Contains(said, want) {
				t.Errorf("the audit does not say %q: %s", want, said)
			}
		}
		refused(t, a.Trust.Drop(ctx, operator, pool.Default, root, client.DropTrustRequest{}, once.Call{}), fault.Denied, "")
		a.verified()
	})
}

// first drops the second of two values.
func first[A, B any](a A, _ B, err error) (A, error) { return a, err }

// TestForeignCRLs brings in CRLs of a foreign root: only its own, current, and not older ones. The hosts of the pool are told
// of it and may fetch it; those of others may not.
func TestForeignCRLs(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), t.Context()
		m := a.join(client.AddHostRequest{Name: "one"})
		stranger := a.join(client.AddHostRequest{Name: "two", Pool: "lab"})
		root, other := forge(t, "Foreign", nil), forge(t, "Other", nil)
		entry := a.add(root.pem())[0]
		now := time.Now()
		put := func(der []byte) error { return a.Trust.AddCRL(ctx, admin, pool.Default, entry.ID, der, once.Call{}) }
		before := a.desired(m)
		_, err := a.Hosts.TrustCRL(ctx, m.principal, entry.ID)
		refused(t, err, fault.NotFound, "with a CRL")
		check(t, put(root.list(t, 5, now.Add(-time.Hour), 24*time.Hour)))
		after := a.desired(m)
		told := after.Trust.Issuers[len(after.Trust.Issuers)-1]
		if told.Entry != entry.ID || told.CRLNumber != "5" || told.NextUpdate.IsZero() || after.ETag == before.ETag || after.Trust.Version != before.Trust.Version {
			t.Fatalf("told %+v, version %d of %d", told, after.Trust.Version, before.Trust.Version)
		}
		der := must[[]byte](t)(a.Hosts.TrustCRL(ctx, m.principal, entry.ID))
		if list := must[*crl.List](t)(crl.Parse(der)); list.CheckIssuer(root.Certificate) != nil {
			t.Error("the CRL that is handed out is another")
		}
		_, err = a.Hosts.TrustCRL(ctx, stranger.principal, entry.ID)
		refused(t, err, fault.NotFound, "with a CRL")
		delta := must[[]byte](t)(crl.Encode(&crl.Spec{Issuer: root.Certificate, ThisUpdate: now.UTC().Truncate(time.Second), NextUpdate: now.Add(time.Hour).UTC().Truncate(time.Second),
			Number: big.NewInt(9), BaseNumber: big.NewInt(5)}, nil, root.key))
		for name, c := range map[string]struct {
			der  []byte
			kind fault.Kind
			says string
		}{
			"another's":  {other.list(t, 6, now.Add(-time.Hour), 24*time.Hour), fault.Invalid, ""},
			"older":      {root.list(t, 4, now.Add(-time.Hour), 24*time.Hour), fault.Conflict, "number 5 of"},
			"went back":  {root.list(t, 6, now.Add(-2*time.Hour), 24*time.Hour), fault.Conflict, "a newer one would pass"},
			"ended":      {root.list(t, 6, now.Add(-2*time.Hour), time.Hour), fault.Invalid, "ended"},
			"to come":    {root.list(t, 6, now.Add(time.Hour), time.Hour), fault.Invalid, "later than now"},
			"a delta":    {delta, fault.Invalid, "a delta"},
			"no CRL":     {[]byte("hello"), fault.Invalid, ""},
			"too large":  {make([]byte, 8<<20+1), fault.TooLarge, "limit"},
			"cut":        {root.list(t, 6, now, time.Hour)[:60], fault.Invalid, ""},
			"a root der": {root.Raw, fault.Invalid, ""},
		} {
			if err := put(c.der); !fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %v; want one that is %s and says %q", name, err, c.kind, c.says)
			}
		}
		check(t, put(root.list(t, 5, now.Add(-time.Hour), 24*time.Hour))) // the same again
		check(t, put(root.list(t, 6, now.Add(-time.Minute), 24*time.Hour)))
		own := must[client.TrustEntry](t)(a.Trust.Find(ctx, pool.Default, a.list()[0].ID))
		refused(t, a.Trust.AddCRL(ctx, admin, pool.Default, own.ID, root.list(t, 7, now, time.Hour), once.Call{}), fault.Conflict, "signs its CRLs itself")
		pinned := must[[]client.TrustEntry](t)(a.Trust.Add(ctx, admin, pool.Default, client.AddTrustRequest{Pinned: true, PEM: forge(t, "www", nil, leaf).pem()}, once.Call{}))[0]
		refused(t, a.Trust.AddCRL(ctx, admin, pool.Default, pinned.ID, root.list(t, 7, now, time.Hour), once.Call{}), fault.Invalid, "signs no CRL")
		// It ends tomorrow, and is told of; so is the root, which ends within its 1,000 hours only later.
		soon := must[[]trust.Ending](t)(a.Trust.Ending(ctx, now.Add(trust.EndingSoon), 10))
		if len(soon) != 1 || !soon[0].CRL || soon[0].Entry != entry.ID {
			t.Errorf("ending soon: %+v", soon)
		}
		if all := must[[]trust.Ending](t)(a.Trust.Ending(ctx, now.Add(2000*time.Hour), 10)); len(all) != 3 || !all[0].CRL {
			t.Errorf("ending: %+v", all)
		}
		// Taken out and brought back in by a version before, it has its CRL still.
		check(t, a.drop(entry.ID, ""))
		a.exec("UPDATE trust_pool SET version = version - 1 WHERE pool = 'default'")
		a.add(other.pem())
		back := must[client.TrustEntry](t)(a.Trust.Find(ctx, pool.Default, entry.Fingerprint))
		if back.State != "trusted" || back.CRLNumber != "6" {
			t.Errorf("come back: %+v", back)
		}
		if n := a.events("trust.crl"); n != 3 {
			t.Errorf("%d events", n)
		}
		a.verified()
	})
}

// TestWhatEndsLeaves has an anchor and a pinned certificate end: hosts are not given them any more from that moment on, whatever
// version they have, and soon the store says so.
func TestWhatEndsLeaves(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), t.Context()
		short := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(2 * time.Hour) }
		ending := forge(t, "Short", nil, short)
		added := a.add(ending.pem(), forge(t, "Long", nil).pem())
		check(t, a.Trust.AddCRL(ctx, admin, pool.Default, added[0].ID, ending.list(t, 1, time.Now().Add(-time.Hour), 24*time.Hour), once.Call{}))
		must[[]client.TrustEntry](t)(a.Trust.Add(ctx, admin, pool.Default, client.AddTrustRequest{Pinned: true, Purpose: "licensing",
			PEM: forge(t, "www", nil, leaf, short).pem()}, once.Call{}))
		now, later := time.Now(), time.Now().Add(3*time.Hour)
		version := a.of(0).Version
		at := func(now time.Time, version int64) *trust.Sets {
			return must[*trust.Sets](t)(a.Trust.Of(ctx, pool.Default, version, now))
		}
		if sets := at(now, 0); len(sets.General.Anchors) != 3 || len(sets.Others) != 1 {
			t.Fatalf("%+v", sets)
		}
		if sets := at(later, 0); len(sets.General.Anchors) != 2 || len(sets.Others) != 0 || sets.Version != version {
			t.Fatalf("after its end: %+v", sets)
		}
		check(t, a.Trust.Prune(ctx, now))
		if a.events("trust.prune") != 0 || at(now, 0).Version != version {
			t.Fatal("something was pruned before its end")
		}
		for range 2 { // another node, too
			check(t, a.Trust.Prune(ctx, later))
		}
		if n := a.events("trust.prune"); n != 2 {
			t.Fatalf("%d events", n)
		}
		for _, v := range a.versions() {
			for _, text := range at(now, v).General.Anchors {
				if parse(t, text).Equal(ending.Certificate) {
					t.Errorf("version %d has it still", v)
				}
			}
		}
		if sets := at(now, 0); sets.Version <= version {
			t.Errorf("version %d", sets.Version)
		}
		// While a rollout works, its versions stay, and what has ended leaves them all the same.
		must[[]client.TrustEntry](t)(a.Trust.Add(ctx, admin, pool.Default, client.AddTrustRequest{PEM: forge(t, "Short too", nil, short).pem()}, once.Call{}))
		check(t, a.tx(func(tx *db.Tx) error { return a.Trust.Claim(ctx, tx, pool.Default, "1") }))
		staged := a.stage(a.successors(2))
		version = at(now, 0).Version
		check(t, a.Trust.Prune(ctx, later))
		if sets := at(now, 0); sets.Version != version || len(sets.General.Anchors) != 2 || len(at(now, staged).General.Anchors) != 3 {
			t.Errorf("version %d of %d: %d and %d anchors", sets.Version, version, len(sets.General.Anchors), len(at(now, staged).General.Anchors))
		}
		a.verified()
	})
}

// TestPoolOfNone lists and changes what a pool trusts that has no hosts, and that of one that waits for its root.
func TestPoolOfNone(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), t.Context()
		if all := must[[]client.TrustEntry](t)(a.Trust.Entries(ctx, admin, "lab")); len(all) != 2 || all[0].Issuer != "lab-root" || all[1].Issuer != "lab" {
			t.Fatalf("%+v", all)
		}
		must[*pool.Pool](t)(a.Pools.Add(ctx, system, "", pool.Spec{Name: "waiting"}))
		if all := must[[]client.TrustEntry](t)(a.Trust.Entries(ctx, admin, "waiting")); len(all) != 0 {
			t.Fatalf("%+v", all)
		}
		must[[]client.TrustEntry](t)(a.Trust.Add(ctx, admin, "waiting", client.AddTrustRequest{PEM: forge(t, "Foreign", nil).pem()}, once.Call{}))
		if sets := must[*trust.Sets](t)(a.Trust.Of(ctx, "waiting", 0, time.Now())); sets.Version < 1 || len(sets.General.Anchors) != 1 {
			t.Fatalf("%+v", sets)
		}
		a.verified()
	})
}
