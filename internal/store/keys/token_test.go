package keys_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"strings"
	"testing"

	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/token"
)

// TestKeysInTokens adopts a key, and holds it against the rules of who may use it: the nodes that are entitled and reach the token.
func TestKeysInTokens(t *testing.T) {
	const pin = "4711-Secret"
	soft := pkitest.NewSoftHSM(t)
	place := token.Place{Token: "ca", Module: soft.Module, PINFile: soft.Init("ca", pin)}
	soft.Generate("ca", pin, "EC:prime256v1", "issuer", "01")
	soft.Generate("ca", pin, "EC:prime256v1", "other", "02")
	tokens := token.New(token.Options{Node: "a", Dir: t.TempDir(), Helper: pkitest.TokenHelper(t), Places: []token.Place{place}})
	defer tokens.Close()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		ctx, key := t.Context(), nodeKey(t)
		a := newStore(t, d, "a", key)
		inTx(t, d, func(tx *db.Tx) error {
			return a.AddRecipient(ctx, tx, keys.Recipient{ID: "a", Kind: keys.KindNode, Subsystems: []keys.Subsystem{keys.SubsystemCA}, PublicKey: key.Public()}, actor, now)
		})
		if _, _, err := a.Adopt(ctx, "pkcs11:token=ca;object=issuer", keys.Issuer, "i1"); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "node a") {
			t.Fatalf("without tokens: %v", err)
		}
		a.UseTokens(tokens)
		k, signer, err := a.Adopt(ctx, "pkcs11:token=ca;object=issuer", keys.Issuer, "i1")
		if err != nil || k.Extractable {
			t.Fatal(k, err)
		}
		inTx(t, d, func(tx *db.Tx) error { return a.InsertToken(ctx, tx, k, actor, now) })
		err = d.Tx(ctx, func(tx *db.Tx) error { return a.InsertToken(ctx, tx, k, actor, now) })
		if !fault.Is(err, fault.Conflict) {
			t.Errorf("one key for two: %v", err)
		}
		digest := sha256.Sum256([]byte("text"))
		again, err := a.Signer(ctx, k.ID)
		if err != nil {
			t.Fatal(err)
		}
		signature, err := again.Sign(rand.Reader, digest[:], crypto.SHA256)
		if err != nil || !ecdsa.VerifyASN1(signer.Public().(*ecdsa.PublicKey), digest[:], signature) {
			t.Errorf("what was adopted does not sign: %v", err)
		}
		if found, err := a.Find(ctx, keys.Issuer, "i1"); err != nil || len(found) != 1 || found[0].Token != k.URI {
			t.Errorf("found %+v, %v", found, err)
		}
		if _, err := a.Export(ctx, k.ID); !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "never leaves") {
			t.Errorf("export: %v", err)
		}
		if o, err := a.Openable(ctx); err != nil || o.Entitled != 1 || o.Open != 1 {
			t.Errorf("a node that reaches the token: %+v, %v", o, err)
		}
		notEntitled(t, d, tokens, k)

		// A row that was changed to another key of the token leads nowhere.
		inTx(t, d, func(tx *db.Tx) error {
			_, err := tx.Exec(ctx, `UPDATE token_key SET uri = 'pkcs11:token=ca;object=other' WHERE id = $1`, k.ID)
			return err
		})
		a.Forget()
		if _, err := a.Signer(ctx, k.ID); !fault.Is(err, fault.Conflict) {
			t.Errorf("another key of the token: %v", err)
		}
		inTx(t, d, func(tx *db.Tx) error { return a.Delete(ctx, tx, k.ID, actor, now) })
		if found, err := a.InTokens(ctx); err != nil || len(found) != 0 {
			t.Errorf("after it was deleted: %v, %v", found, err)
		}
	})
}

// notEntitled has two more nodes ask: one that only answers OCSP requests, though it reaches the token, and one that does not.
func notEntitled(t *testing.T, d *db.DB, tokens *token.Tokens, k *keys.TokenKey) {
	t.Helper()
	ctx := t.Context()
	for name, subsystem := range map[string]keys.Subsystem{"o": keys.SubsystemOCSP, "c": keys.SubsystemCA} {
		key := nodeKey(t)
		s := newStore(t, d, name, key)
		inTx(t, d, func(tx *db.Tx) error {
			return s.AddRecipient(ctx, tx, keys.Recipient{ID: name, Kind: keys.KindNode, Subsystems: []keys.Subsystem{subsystem}, PublicKey: key.Public()}, actor, now)
		})
		want, entitled := fault.Unavailable, 1
		if name == "o" {
			s.UseTokens(tokens)
			want, entitled = fault.Denied, 0
		}
		if _, err := s.Signer(ctx, k.ID); !fault.Is(err, want) {
			t.Errorf("node %s: %v", name, err)
		}
		if o, err := s.Openable(ctx); err != nil || o.Entitled != entitled || o.Open != 0 || len(o.Why) != entitled {
			t.Errorf("node %s: %+v, %v", name, o, err)
		}
	}
}
