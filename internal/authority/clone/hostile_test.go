package clone_test

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/store/db"
)

// TestManyInvitations has ten thousand invitations lie about: no more than a hundred are good at once, those that have ended stand in
// nobody's way, all are listed in pages, and one that joins is found among them by its secret.
func TestManyInvitations(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	fill := func(prefix string, from, to int, expires time.Time) {
		a.exec(`INSERT INTO node_invitation (id, hash, subsystems, actor, created_at, expires_at, used_by, used_at, refused)
			SELECT CAST($1 AS TEXT) || n, sha256(CAST(CAST($1 AS TEXT) || n AS BYTEA)), 'ca,ocsp', 'test', 1, $2, '', 0, 0 FROM generate_series($3::bigint, $4::bigint) n`,
			prefix, db.Micros(expires), int64(from), int64(to))
	}
	fill("ended", 1, 9900, time.Now().Add(-time.Hour))
	fill("open", 1, 99, time.Now().Add(time.Hour))
	token := a.invite()
	_, err := a.Clones.Invite(ctx, a.admin, client.CloneInvitation{}, "")
	refused(t, err, fault.Conflict, "100 invitations of nodes are open, and at most 100")
	listed, after := 0, ""
	for pages := 0; ; pages++ {
		found, next, err := a.Clones.Invitations(ctx, a.admin, after, 1000)
		must(t, err)
		if listed, after = listed+len(found), next; len(found) > 1000 || pages > 10 {
			t.Fatalf("a page of %d, the %dth", len(found), pages)
		}
		if next == "" {
			break
		}
	}
	if listed != 10_000 {
		t.Errorf("%d are listed", listed)
	}
	m := a.machine("n2", token)
	_, err = a.Clones.Join(ctx, m.in)
	must(t, err)
	a.invite() // there is room again
	if plan := a.plan(`SELECT id FROM node_invitation WHERE hash = ''`); !strings.Contains(plan, "Index") {
		t.Errorf("each call of a stranger reads the whole table: %s", plan)
	}
	// As many may wait as may be invited.
	a.exec(`INSERT INTO node SELECT 'w' || n, state, subsystems, address, public_key || n, fingerprint, tls_spki, principal, database_role, request,
		answer, report, joined_by, approved_by, created_at, approved_at, started_at, seen_at, gone_at FROM node, generate_series(1, 99) n WHERE name = 'n2'`)
	a.exec(`DELETE FROM node_invitation WHERE used_by = ''`)
	_, err = a.Clones.Invite(ctx, a.admin, client.CloneInvitation{}, "")
	refused(t, err, fault.Conflict, "100 machines wait")
}

// plan is how PostgreSQL would run a query on many rows.
func (a *authority) plan(query string) (text string) {
	a.t.Helper()
	a.exec(`ANALYZE node_invitation`)
	must(a.t, a.DB.ReadSnapshot(a.t.Context(), func(tx *db.Tx) error { return tx.QueryRow(a.t.Context(), `EXPLAIN `+query).Scan(&text) }))
	return text
}

// TestHostileText has a machine with a good token say what no machine says: it is refused, nothing is made of it, and what the refusal
// repeats does nothing to a terminal.
func TestHostileText(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	m := a.machine("n2", a.invite())
	large := huge(t)
	const override = "\u202e"
	for what, change := range map[string]func(in *client.CloneJoin){
		"NUL in the name":         func(in *client.CloneJoin) { in.Name = "n\x002" },
		"a line in the name":      func(in *client.CloneJoin) { in.Name = "n2\n[ERROR] x" },
		"an override in the name": func(in *client.CloneJoin) { in.Name = "n" + override + "2" },
		"no UTF-8 in the name":    func(in *client.CloneJoin) { in.Name = "n\xff" },
		"a letter like an n":      func(in *client.CloneJoin) { in.Name = "ո2" },
		"NUL in the address":      func(in *client.CloneJoin) { in.Address = "https://n\x002.test" },
		"a line in the address":   func(in *client.CloneJoin) { in.Address = "https://n2.test\r\nHost: x" },
		"an override in it":       func(in *client.CloneJoin) { in.Address = "https://n" + override + "2.test" },
		"NUL in names":            func(in *client.CloneJoin) { in.Names = []string{"dns:n\x002.test"} },
		"a line in names":         func(in *client.CloneJoin) { in.Names = []string{"dns:n2.test\nDNS:x"} },
		"an override in names":    func(in *client.CloneJoin) { in.Names = []string{"dns:n" + override + ".test"} },
		"an address that is none": func(in *client.CloneJoin) { in.Names = []string{"ip:1.2.3.4\x00"} },
		"NUL in the release":      func(in *client.CloneJoin) { in.Release = "1\x00" },
		"an override in it too":   func(in *client.CloneJoin) { in.Release = "1" + override },
		"NUL in the key":          func(in *client.CloneJoin) { in.PublicKey += "\x00" },
		"a line in the key":       func(in *client.CloneJoin) { in.PublicKey += "\nage1x" },
		"NUL in the request":      func(in *client.CloneJoin) { in.CSR = "\x00" + in.CSR },
		"two requests":            func(in *client.CloneJoin) { in.CSR += in.CSR },
		"a key of 16384 bits":     func(in *client.CloneJoin) { in.CSR = large },
		"another of them":         func(in *client.CloneJoin) { in.DatabaseCSR = large },
	} {
		in := m.in
		in.Time = time.Now()
		change(&in)
		_, err := a.Clones.Join(ctx, in)
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", what, err)
			continue
		}
		if (in.CSR == large || in.DatabaseCSR == large) && !strings.Contains(err.Error(), "16384") {
			t.Errorf("%s: %v", what, err)
		}
		if strings.ContainsFunc(err.Error(), func(c rune) bool { return !unicode.IsPrint(c) }) {
			t.Errorf("%s: the refusal %q is not for a terminal", what, err)
		}
	}
	if n := a.count(`SELECT (SELECT COUNT(*) FROM node WHERE name <> 'n1') + (SELECT COUNT(*) FROM node_invitation WHERE used_by <> '')`); n != 0 {
		t.Fatalf("%d rows were made", n)
	}
	m.in.Time = time.Now()
	_, err := a.Clones.Join(ctx, m.in)
	must(t, err)
}

// huge is a request for an RSA key whose signature would cost much to check: it is refused for its size, and no signature is looked at.
func huge(t *testing.T) string {
	t.Helper()
	n := new(big.Int).Lsh(big.NewInt(1), 16383)
	n.Or(n, big.NewInt(1))
	spki, err := x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: n, E: 65537})
	must(t, err)
	type algorithm struct {
		Algorithm asn1.ObjectIdentifier
		Null      asn1.RawValue
	}
	sha256WithRSA := algorithm{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, asn1.NullRawValue}
	der, err := asn1.Marshal(struct { // RFC 2986 section 4.2
		Info struct {
			Version    int
			Subject    []asn1.RawValue
			SPKI       asn1.RawValue
			Attributes asn1.RawValue
		}
		Algorithm algorithm
		Signature asn1.BitString
	}{
		Info: struct {
			Version    int
			Subject    []asn1.RawValue
			SPKI       asn1.RawValue
			Attributes asn1.RawValue
		}{SPKI: asn1.RawValue{FullBytes: spki}, Attributes: asn1.RawValue{Class: asn1.ClassContextSpecific, IsCompound: true}},
		Algorithm: sha256WithRSA, Signature: asn1.BitString{Bytes: make([]byte, 2048), BitLength: 2048 * 8},
	})
	must(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// TestOneTokenAtOnce has machines use one token at the same time, and one machine ask twice: one is let in, once.
func TestOneTokenAtOnce(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	_, two := a.join("n2")
	atOnce := func(joins ...client.CloneJoin) (errs []error) {
		errs = make([]error, len(joins))
		var all sync.WaitGroup
		for i, in := range joins {
			s := a.Clones
			if i%2 == 1 {
				s = two.Clones
			}
			all.Go(func() { _, errs[i] = s.Join(ctx, in) })
		}
		all.Wait()
		return errs
	}
	let := func(errs []error, kind fault.Kind) (n int) {
		for _, err := range errs {
			if err == nil {
				n++
			} else if !fault.Is(err, kind) {
				t.Errorf("one of many: %v", err)
			}
		}
		return n
	}
	token := a.invite()
	var joins []client.CloneJoin
	for _, name := range []string{"a", "b", "c", "d"} {
		joins = append(joins, a.machine(name, token).in)
	}
	if n := let(atOnce(joins...), fault.Denied); n != 1 || a.count(`SELECT COUNT(*) FROM node WHERE state = 'waiting'`) != 1 {
		t.Errorf("%d machines were let in by one token", n)
	}
	// The same call, sent again before it was answered.
	again := a.machine("e", a.invite()).in
	if n := let(atOnce(again, again, again, again), fault.Denied); n != 4 || a.count(`SELECT COUNT(*) FROM node WHERE name = 'e'`) != 1 {
		t.Errorf("%d of 4 calls of one machine were answered", n)
	}
	// One name, by two tokens.
	if n := let(atOnce(a.machine("f", a.invite()).in, a.machine("f", a.invite()).in), fault.Conflict); n != 1 {
		t.Errorf("%d machines have one name", n)
	}
	if n := a.count(`SELECT COUNT(*) FROM audit_event WHERE action = 'clone.join'`); n != 4 {
		t.Errorf("the audit has %d", n)
	}
}
