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

// endorse makes the node of s vouch for all recipients, as its operator does when it joins.
func endorse(t testing.TB, d *db.DB, s *keys.Store) {
	t.Helper()
	all, err := s.Recipients(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	inTx(t, d, func(tx *db.Tx) error {
		for _, r := range all {
			if err := s.Endorse(t.Context(), tx, r.ID, r.PublicKey, actor, now); err != nil {
				return err
			}
		}
		return nil
	})
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
	t.Parallel()
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

// Every node is lost; the database and the recovery key are not.
func TestRecoverAllOntoANewNode(t *testing.T) {
	t.Parallel()
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
	t.Parallel()
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
	t.Parallel()
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

func TestOpenedKeysAreBoundedAndForgotten(t *testing.T) {
	t.Parallel()
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
