package keys_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
	"chancery/internal/pkitest"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
)

var now = time.Date(2026, 11, 21, 20, 0, 0, 0, time.UTC)

const actor = "operator:alice"

func nodeKey(t testing.TB) *keys.NodeKey {
	t.Helper()
	k, err := keys.CreateNodeKey(filepath.Join(t.TempDir(), "node.key"))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func recovery(t testing.TB) *keys.Recovery {
	t.Helper()
	r, err := keys.GenerateRecovery()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func newStore(t testing.TB, d *db.DB, node string, key *keys.NodeKey) *keys.Store {
	t.Helper()
	log, err := audit.New(d, node)
	if err != nil {
		t.Fatal(err)
	}
	return keys.New(d, log, node, key)
}

func inTx(t testing.TB, d *db.DB, fn func(tx *db.Tx) error) {
	t.Helper()
	if err := d.Tx(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

func run(t testing.TB, d *db.DB, query string, args ...any) {
	t.Helper()
	inTx(t, d, func(tx *db.Tx) error {
		_, err := tx.Exec(t.Context(), query, args...)
		return err
	})
}

func add(t testing.TB, d *db.DB, s *keys.Store, r keys.Recipient) {
	t.Helper()
	inTx(t, d, func(tx *db.Tx) error { return s.AddRecipient(t.Context(), tx, r, actor, now) })
}

// office is an authority with one ca node and a recovery recipient.
type office struct {
	d        *db.DB
	store    *keys.Store
	node     *keys.NodeKey
	recovery *keys.Recovery
}

func newOffice(t testing.TB, d *db.DB) *office {
	t.Helper()
	o := &office{d: d, node: nodeKey(t), recovery: recovery(t)}
	o.store = newStore(t, d, "n1", o.node)
	add(t, d, o.store, keys.Recipient{ID: "n1", Kind: keys.KindNode, Name: "first", Subsystems: []keys.Subsystem{"ca", "ocsp"}, PublicKey: o.node.Public()})
	add(t, d, o.store, keys.Recipient{ID: "recovery", Kind: keys.KindRecovery, Name: "safe", PublicKey: o.recovery.Public()})
	return o
}

func (o *office) put(t testing.TB, key crypto.Signer, purpose keys.Purpose, owner string) string {
	t.Helper()
	sealed, err := o.store.Seal(t.Context(), key, purpose, owner)
	if err != nil {
		t.Fatal(err)
	}
	inTx(t, o.d, func(tx *db.Tx) error { return o.store.Insert(t.Context(), tx, sealed, actor, now) })
	return sealed.ID
}

func verifies(pub crypto.PublicKey, digest, signature []byte) bool {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(k, digest, signature)
	case ed25519.PublicKey:
		return ed25519.Verify(k, digest, signature)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(k, crypto.SHA256, digest, signature) == nil
	}
	return false
}

func TestSignerOfEachAlgorithm(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		o := newOffice(t, d)
		for _, algorithm := range []keyfile.Algorithm{keyfile.ECDSAP256, keyfile.ECDSAP384, keyfile.ECDSAP521, keyfile.Ed25519, keyfile.RSA2048} {
			key := generate(t, algorithm)
			id := o.put(t, key, keys.Issuer, "issuer-1")
			o.store.Forget()
			var group sync.WaitGroup
			for range 4 { // the first use opens the key; several may be first
				group.Go(func() {
					signer, err := o.store.Signer(context.Background(), id)
					if err != nil {
						t.Errorf("%s: %v", algorithm, err)
						return
					}
					for range 3 {
						digest := sha256.Sum256([]byte(algorithm))
						opts := crypto.SignerOpts(crypto.SHA256)
						if algorithm == keyfile.Ed25519 {
							opts = crypto.Hash(0)
						}
						signature, err := signer.Sign(rand.Reader, digest[:], opts)
						if err != nil || !verifies(key.Public(), digest[:], signature) {
							t.Errorf("%s: signature %x, %v", algorithm, signature, err)
						}
					}
				})
			}
			group.Wait()
		}
		found, err := o.store.Find(t.Context(), keys.Issuer, "issuer-1")
		if err != nil || len(found) != 5 {
			t.Fatalf("found %d keys, %v", len(found), err)
		}
		if none, err := o.store.Find(t.Context(), keys.OCSP, ""); err != nil || len(none) != 0 {
			t.Fatalf("found %v, %v", none, err)
		}
		if _, err := o.store.Signer(t.Context(), "nothing"); !fault.Is(err, fault.NotFound) {
			t.Fatalf("a key that is not there: %v", err)
		}
	})
}

// The rule of who is entitled to what, line by line.
func TestEntitlement(t *testing.T) {
	node := func(subsystems ...keys.Subsystem) keys.Recipient {
		return keys.Recipient{ID: "n", Kind: keys.KindNode, Subsystems: subsystems}
	}
	all := []keys.Purpose{keys.Issuer, keys.OCSP, keys.Audit, keys.TLS}
	for _, c := range []struct {
		who   keys.Recipient
		owner string
		may   []keys.Purpose
	}{
		{keys.Recipient{ID: "r", Kind: keys.KindRecovery}, "x", all},
		{node("ca"), "x", []keys.Purpose{keys.Issuer, keys.OCSP, keys.Audit}},
		{node("ca"), "n", all},
		{node("ca", "ocsp", "kra", "tks"), "x", []keys.Purpose{keys.Issuer, keys.OCSP, keys.Audit}},
		{node("ocsp"), "x", []keys.Purpose{keys.OCSP}},
		{node("ocsp"), "n", []keys.Purpose{keys.OCSP, keys.TLS}},
		{node("kra", "tks"), "x", nil},
		{node("kra"), "n", []keys.Purpose{keys.TLS}},
		{node(), "x", nil},
		{keys.Recipient{ID: "h", Kind: "host", Subsystems: []keys.Subsystem{"ca"}}, "x", nil},
	} {
		for _, p := range append(all, "unknown") {
			if got := c.who.Entitled(p, c.owner); got != slices.Contains(c.may, p) {
				t.Errorf("%s %v, key of %s: entitled to %s is %v", c.who.Kind, c.who.Subsystems, c.owner, p, got)
			}
		}
	}
}

func TestAnOCSPNodeNeverOpensAnIssuersKey(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		o := newOffice(t, d)
		before := o.put(t, generate(t, keyfile.ECDSAP256), keys.Issuer, "i")
		key := nodeKey(t)
		responder := newStore(t, d, "n2", key)
		add(t, d, o.store, keys.Recipient{ID: "n2", Kind: keys.KindNode, Subsystems: []keys.Subsystem{"ocsp"}, PublicKey: key.Public()})
		after := o.put(t, generate(t, keyfile.ECDSAP256), keys.Issuer, "i")
		ocsp := o.put(t, generate(t, keyfile.ECDSAP256), keys.OCSP, "i")
		if n, err := o.store.Rewrap(t.Context(), "n2", actor); err != nil || n != 0 {
			t.Fatalf("rewrapped %d, %v", n, err)
		}
		for _, id := range []string{before, after} {
			if _, err := responder.Signer(t.Context(), id); !fault.Is(err, fault.Denied) {
				t.Fatalf("an ocsp node and an issuer's key: %v", err)
			}
		}
		if _, err := responder.Signer(t.Context(), ocsp); err != nil {
			t.Fatal(err)
		}
		wantFindings(t, o, responder, nil)
	})
}

func TestRecipientsComeAndGo(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		o := newOffice(t, d)
		var ids []string
		for i := range 3 {
			ids = append(ids, o.put(t, generate(t, keyfile.ECDSAP256), keys.Issuer, fmt.Sprint("i", i)))
		}
		ids = append(ids, o.put(t, generate(t, keyfile.Ed25519), keys.Audit, "authority"))
		key := nodeKey(t)
		second := newStore(t, d, "n2", key)
		add(t, d, o.store, keys.Recipient{ID: "n2", Kind: keys.KindNode, Subsystems: []keys.Subsystem{"ca"}, PublicKey: key.Public()})
		if _, err := second.Signer(ctx, ids[0]); !fault.Is(err, fault.Denied) {
			t.Fatalf("before the rewrap: %v", err)
		}
		if findings, _, err := o.store.Check(ctx, nil); err != nil || len(findings) != 4 || findings[0].Rule != keys.MissingWrap {
			t.Fatalf("before the rewrap: %+v, %v", findings, err)
		}
		if n, err := o.store.Rewrap(ctx, "n2", actor); err != nil || n != 4 {
			t.Fatalf("rewrapped %d, %v", n, err)
		}
		if n, err := o.store.Rewrap(ctx, "n2", actor); err != nil || n != 0 {
			t.Fatalf("again: %d, %v", n, err)
		}
		wantFindings(t, o, second, nil)
		for _, id := range ids {
			if _, err := second.Signer(ctx, id); err != nil {
				t.Fatal(err)
			}
		}
		// What was sealed for other recipients than there are now is not stored.
		stale, err := o.store.Seal(ctx, generate(t, keyfile.ECDSAP256), keys.Issuer, "i9")
		if err != nil {
			t.Fatal(err)
		}
		inTx(t, d, func(tx *db.Tx) error { return o.store.RemoveRecipient(ctx, tx, "n2", actor, now) })
		err = d.Tx(ctx, func(tx *db.Tx) error { return o.store.Insert(ctx, tx, stale, actor, now) })
		if !fault.Is(err, fault.Conflict) {
			t.Fatalf("a key sealed for a removed node: %v", err)
		}
		second.Forget()
		for _, id := range ids {
			if _, err := second.Signer(ctx, id); !fault.Is(err, fault.Denied) {
				t.Fatalf("after the removal: %v", err)
			}
		}
		wantFindings(t, o, o.store, nil)
		err = d.Tx(ctx, func(tx *db.Tx) error { return o.store.RemoveRecipient(ctx, tx, "recovery", actor, now) })
		if !fault.Is(err, fault.Conflict) {
			t.Fatalf("the only recovery recipient: %v", err)
		}
		err = d.Tx(ctx, func(tx *db.Tx) error { return o.store.RemoveRecipient(ctx, tx, "n9", actor, now) })
		if !fault.Is(err, fault.NotFound) {
			t.Fatalf("a recipient that is not there: %v", err)
		}
	})
}

// The recovery key is replaced: added, wrapped to, and only then is the old one removed.
func TestRecoveryKeyIsReplaced(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		o := newOffice(t, d)
		o.put(t, generate(t, keyfile.ECDSAP256), keys.Issuer, "i")
		next := recovery(t)
		add(t, d, o.store, keys.Recipient{ID: "recovery-2", Kind: keys.KindRecovery, PublicKey: next.Public()})
		if n, err := o.store.Rewrap(ctx, "recovery-2", actor); err != nil || n != 1 {
			t.Fatalf("rewrapped %d, %v", n, err)
		}
		inTx(t, d, func(tx *db.Tx) error { return o.store.RemoveRecipient(ctx, tx, "recovery", actor, now) })
		old := o.recovery
		o.recovery = next
		wantFindings(t, o, o.store, nil)
		if findings, _, err := o.store.Check(ctx, old); err != nil || len(findings) != 1 || findings[0].Rule != keys.WrongRecipient {
			t.Fatalf("with the old key: %+v, %v", findings, err)
		}
	})
}

// Every node is lost; the database and the recovery key are not.
func TestRecoverAllOntoANewNode(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		o := newOffice(t, d)
		want := generate(t, keyfile.ECDSAP256)
		id := o.put(t, want, keys.Issuer, "i")
		tls := o.put(t, generate(t, keyfile.ECDSAP256), keys.TLS, "n1")
		for i := range 120 { // more than one page
			o.put(t, generate(t, keyfile.Ed25519), keys.OCSP, fmt.Sprint("i", i))
		}
		key := nodeKey(t)
		fresh := newStore(t, d, "n9", key)
		if _, err := fresh.RecoverAll(ctx, o.recovery, actor); !fault.Is(err, fault.NotFound) {
			t.Fatalf("before the node is a recipient: %v", err)
		}
		add(t, d, fresh, keys.Recipient{ID: "n9", Kind: keys.KindNode, Subsystems: []keys.Subsystem{"ca"}, PublicKey: key.Public()})
		if _, err := fresh.RecoverAll(ctx, recovery(t), actor); !fault.Is(err, fault.Invalid) {
			t.Fatalf("with another recovery key: %v", err)
		}
		run(t, d, `INSERT INTO key_wrap (key_id, recipient_id, wrap, created) VALUES ($1, 'n9', $2, 0)`, id, []byte("wrong")) // is replaced
		if n, err := fresh.RecoverAll(ctx, o.recovery, actor); err != nil || n != 121 {
			t.Fatalf("recovered %d, %v", n, err)
		}
		signer, err := fresh.Signer(ctx, id)
		if err != nil || !want.Public().(*ecdsa.PublicKey).Equal(signer.Public()) {
			t.Fatalf("got %v, %v", signer, err)
		}
		if _, err := fresh.Signer(ctx, tls); !fault.Is(err, fault.Denied) {
			t.Fatalf("another node's TLS key: %v", err)
		}
		inTx(t, d, func(tx *db.Tx) error { return fresh.RemoveRecipient(ctx, tx, "n1", actor, now) })
		wantFindings(t, o, fresh, nil)
	})
}

// A wrong wrap is an error when the key is used, too, and no other key is used in its place.
func TestAWrongWrapDoesNotSign(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		o := newOffice(t, d)
		a := o.put(t, generate(t, keyfile.ECDSAP256), keys.Issuer, "i")
		b := o.put(t, generate(t, keyfile.ECDSAP256), keys.Issuer, "j")
		run(t, d, `UPDATE sealed_key SET ciphertext = (SELECT s.ciphertext FROM sealed_key s WHERE s.id = $1) WHERE id = $2`, b, a)
		run(t, d, `UPDATE key_wrap SET wrap = (SELECT w.wrap FROM key_wrap w WHERE w.key_id = $1 AND w.recipient_id = 'n1')
			WHERE key_id = $2 AND recipient_id = 'n1'`, b, a)
		if signer, err := o.store.Signer(t.Context(), a); err == nil || fault.KindOf(err) != fault.Internal {
			t.Fatalf("got %v, %v", signer, err)
		}
	})
}

func TestSealRefuses(t *testing.T) {
	key := generate(t, keyfile.ECDSAP256)
	safe := keys.Recipient{ID: "r", Kind: keys.KindRecovery, PublicKey: recovery(t).Public()}
	for name, err := range map[string]error{
		"no recovery": func() error { _, err := keys.Seal(key, "k", keys.Issuer, "i", nil); return err }(),
		"purpose": func() error {
			_, err := keys.Seal(key, "k", "signing", "i", []keys.Recipient{safe})
			return err
		}(),
		"no owner": func() error { _, err := keys.Seal(key, "k", keys.Issuer, "", []keys.Recipient{safe}); return err }(),
		"no id":    func() error { _, err := keys.Seal(key, "", keys.Issuer, "i", []keys.Recipient{safe}); return err }(),
		"public key": func() error {
			bad := safe
			bad.PublicKey = "age1nothing"
			_, err := keys.Seal(key, "k", keys.Issuer, "i", []keys.Recipient{bad})
			return err
		}(),
	} {
		if err == nil {
			t.Errorf("%s: sealed", name)
		}
	}
}

func TestRecipientsAreChecked(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		o := newOffice(t, d)
		good := keys.Recipient{ID: "n2", Kind: keys.KindNode, Name: "second", Subsystems: []keys.Subsystem{"ca"}, PublicKey: nodeKey(t).Public()}
		for name, change := range map[string]func(*keys.Recipient){
			"no id":               func(r *keys.Recipient) { r.ID = "" },
			"id with space":       func(r *keys.Recipient) { r.ID = "a b" },
			"kind":                func(r *keys.Recipient) { r.Kind = "host" },
			"no subsystem":        func(r *keys.Recipient) { r.Subsystems = nil },
			"unknown subsystem":   func(r *keys.Recipient) { r.Subsystems = []keys.Subsystem{"ra"} },
			"recovery that is ca": func(r *keys.Recipient) { r.Kind = keys.KindRecovery },
			"no key":              func(r *keys.Recipient) { r.PublicKey = "" },
			"a secret as key":     func(r *keys.Recipient) { r.PublicKey = "AGE-SECRET-KEY-1QQQ" },
			"control characters":  func(r *keys.Recipient) { r.Name = "a\x1b[31m" },
		} {
			r := good
			change(&r)
			err := d.Tx(t.Context(), func(tx *db.Tx) error { return o.store.AddRecipient(t.Context(), tx, r, actor, now) })
			if !fault.Is(err, fault.Invalid) {
				t.Errorf("%s: %v", name, err)
			}
		}
		same := good
		same.PublicKey = o.node.Public()
		err := d.Tx(t.Context(), func(tx *db.Tx) error { return o.store.AddRecipient(t.Context(), tx, same, actor, now) })
		if !fault.Is(err, fault.Conflict) {
			t.Errorf("a public key that is there already: %v", err)
		}
	})
}

func TestOpenedKeysAreBoundedAndForgotten(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		o := newOffice(t, d)
		const most = 5
		o.store.SetMost(most)
		var ids []string
		for range most + 3 {
			ids = append(ids, o.put(t, generate(t, keyfile.Ed25519), keys.OCSP, "i"))
		}
		signers := map[string]crypto.Signer{}
		for _, id := range ids {
			signer, err := o.store.Signer(ctx, id)
			if err != nil {
				t.Fatal(err)
			}
			signers[id] = signer
			if again, err := o.store.Signer(ctx, ids[0]); err != nil || again != signers[ids[0]] {
				t.Fatalf("the key in use was dropped, %v", err)
			}
		}
		if n := o.store.Opened(); n != most {
			t.Fatalf("%d keys are in memory", n)
		}
		if again, err := o.store.Signer(ctx, ids[1]); err != nil || again == signers[ids[1]] {
			t.Fatalf("the oldest key was kept, %v", err)
		}
		last := ids[len(ids)-1]
		inTx(t, d, func(tx *db.Tx) error { return o.store.Delete(ctx, tx, last, actor, now) })
		o.store.Forget(last)
		if _, err := o.store.Signer(ctx, last); !fault.Is(err, fault.NotFound) {
			t.Fatalf("a deleted key: %v", err)
		}
		if o.store.Forget(); o.store.Opened() != 0 {
			t.Fatal("keys are in memory still")
		}
		err := d.Tx(ctx, func(tx *db.Tx) error { return o.store.Delete(ctx, tx, last, actor, now) })
		if !fault.Is(err, fault.NotFound) {
			t.Fatalf("deleted twice: %v", err)
		}
	})
}
