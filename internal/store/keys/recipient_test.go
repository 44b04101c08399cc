package keys_test

import (
	"fmt"
	"slices"
	"testing"

	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
)

// The rule of who is entitled to what, line by line.
func TestEntitlement(t *testing.T) {
	t.Parallel()
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
	t.Parallel()
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
		endorse(t, d, responder)
		wantFindings(t, o, responder, nil)
	})
}

func TestRecipientsComeAndGo(t *testing.T) {
	t.Parallel()
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
		endorse(t, d, second)
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
	t.Parallel()
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

// Whoever can write to the database can add a recipient, exchange one, or widen what one may; and gets no key by it.
func TestAStrangersRecipientGetsNoKeys(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		tamper func(t *testing.T, d *db.DB, stranger string)
		id     string
		seals  bool // whether keys can still be made
	}{
		"added": {func(t *testing.T, d *db.DB, stranger string) {
			run(t, d, `INSERT INTO key_recipient (id, kind, name, subsystems, public_key, created) VALUES ('n3', 'node', 'third', 'ca', $1, 0)`, stranger)
		}, "n3", true},
		"added with another's endorsement": {func(t *testing.T, d *db.DB, stranger string) {
			run(t, d, `INSERT INTO key_recipient (id, kind, name, subsystems, public_key, created) VALUES ('n3', 'node', 'third', 'ca', $1, 0)`, stranger)
			run(t, d, `INSERT INTO key_endorsement (node, recipient_id, mac) SELECT node, 'n3', mac FROM key_endorsement WHERE recipient_id = 'recovery'`)
		}, "n3", true},
		"ocsp node that became a ca": {func(t *testing.T, d *db.DB, stranger string) {
			run(t, d, `UPDATE key_recipient SET subsystems = 'ca,ocsp' WHERE id = 'n2'`)
		}, "n2", true},
		"ocsp node that became a recovery recipient": {func(t *testing.T, d *db.DB, stranger string) {
			run(t, d, `UPDATE key_recipient SET kind = 'recovery', subsystems = '' WHERE id = 'n2'`)
		}, "n2", true},
		"recovery recipient exchanged": {func(t *testing.T, d *db.DB, stranger string) {
			run(t, d, `UPDATE key_recipient SET public_key = $1 WHERE id = 'recovery'`, stranger)
		}, "recovery", false},
	}
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		for name, c := range cases {
			t.Run(name, func(t *testing.T) {
				ctx := t.Context()
				empty(t, d)
				o := newOffice(t, d)
				add(t, d, o.store, keys.Recipient{ID: "n2", Kind: keys.KindNode, Subsystems: []keys.Subsystem{"ocsp"}, PublicKey: nodeKey(t).Public()})
				before := o.put(t, generate(t, keyfile.ECDSAP256), keys.Issuer, "i")
				c.tamper(t, d, nodeKey(t).Public())
				if n, err := o.store.Rewrap(ctx, c.id, actor); !fault.Is(err, fault.Conflict) || n != 0 {
					t.Fatalf("rewrapped %d, %v", n, err)
				}
				sealed, err := o.store.Seal(ctx, generate(t, keyfile.ECDSAP256), keys.Issuer, "i")
				if c.seals {
					if err != nil {
						t.Fatal(err)
					}
					inTx(t, d, func(tx *db.Tx) error { return o.store.Insert(ctx, tx, sealed, actor, now) })
				} else if !fault.Is(err, fault.Conflict) {
					t.Fatalf("sealed: %v", err)
				}
				findings, _, err := o.store.Check(ctx, nil)
				if err != nil || len(findings) != 1 || findings[0].Rule != keys.Unendorsed || findings[0].Recipient != c.id {
					t.Fatalf("findings %+v, %v", findings, err)
				}
				var wraps int
				inTx(t, d, func(tx *db.Tx) error {
					return tx.QueryRow(ctx, `SELECT COUNT(*) FROM key_wrap WHERE recipient_id = $1 AND key_id <> $2`, c.id, before).Scan(&wraps)
				})
				if wraps != 0 {
					t.Fatalf("%s was given %d keys", c.id, wraps)
				}
			})
		}
	})
}

// empty removes all keys and recipients.
func empty(t testing.TB, d *db.DB) {
	t.Helper()
	for _, table := range []string{"key_recipient", "key_endorsement", "key_wrap", "sealed_key"} {
		run(t, d, `DELETE FROM `+table)
	}
}

func TestEndorseNamesThePublicKey(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		o := newOffice(t, d)
		second := newStore(t, d, "n2", nodeKey(t))
		err := d.Tx(ctx, func(tx *db.Tx) error { return second.Endorse(ctx, tx, "n1", nodeKey(t).Public(), actor, now) })
		if !fault.Is(err, fault.Conflict) {
			t.Fatalf("another public key: %v", err)
		}
		err = d.Tx(ctx, func(tx *db.Tx) error { return second.Endorse(ctx, tx, "n9", o.node.Public(), actor, now) })
		if !fault.Is(err, fault.NotFound) {
			t.Fatalf("a recipient that is not there: %v", err)
		}
		if _, err := second.Seal(ctx, generate(t, keyfile.ECDSAP256), keys.Issuer, "i"); !fault.Is(err, fault.Conflict) {
			t.Fatalf("sealed by a node that vouches for nobody: %v", err)
		}
	})
}

func TestRecipientsAreChecked(t *testing.T) {
	t.Parallel()
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

// TestReplaceRecoveryAtEveryCommit cuts the replacement short at each commit, before it is done and after: some recovery key opens
// everything at any time, and the replacement that is run again ends with one.
func TestReplaceRecoveryAtEveryCommit(t *testing.T) {
	t.Parallel()
	cut := 0
	for commit := 1; commit <= 3; commit++ {
		for _, outcome := range []pkitest.Outcome{pkitest.NotPersisted, pkitest.PersistedAnyway} {
			pkitest.EachURL(t, func(t *testing.T, url string) {
				var faults pkitest.Faults
				d := pkitest.Open(t, db.Options{URL: url, Wrap: faults.Wrap})
				ctx, o := t.Context(), newOffice(t, d)
				for range 2 {
					o.put(t, generate(t, keyfile.ECDSAP256), keys.Issuer, "i")
				}
				o.put(t, generate(t, keyfile.ECDSAP256), keys.Audit, "authority")
				opensAll := func(r *keys.Recovery) bool {
					findings, seen, err := o.store.Check(ctx, r)
					if err != nil {
						t.Fatal(err)
					}
					for _, f := range findings {
						if f.Rule == keys.WrongRecipient || f.Recipient == "recovery" {
							return false
						}
					}
					return seen.Opened >= 2*seen.Keys && seen.Keys == 3
				}
				first := recovery(t)
				faults.FailCommit(commit, outcome)
				_, err := o.store.ReplaceRecovery(ctx, first, actor)
				faults.Clear()
				if err == nil {
					t.Fatalf("commit %d %s: it went unnoticed", commit, outcome)
				}
				cut++
				if !opensAll(o.recovery) && !opensAll(first) {
					t.Errorf("commit %d %s: neither the old key nor the new one opens everything", commit, outcome)
				}
				second := recovery(t)
				done, err := o.store.ReplaceRecovery(ctx, second, actor)
				if err != nil || done.Keys != 3 || len(done.Old) < 1 {
					t.Fatalf("commit %d %s: run again: %+v, %v", commit, outcome, done, err)
				}
				old := o.recovery
				o.recovery = second
				wantFindings(t, o, o.store, nil)
				for _, gone := range []*keys.Recovery{old, first} {
					if opensAll(gone) {
						t.Errorf("commit %d %s: %s still opens the keys", commit, outcome, gone)
					}
				}
			})
		}
	}
	if cut < 12 {
		t.Errorf("%d replacements were cut short", cut)
	}
}

// TestReplaceRecoveryKeepsTheOldOneWhereTheNewIsNotWhole: a key that this node cannot open is not taken from its only opener.
func TestReplaceRecoveryKeepsTheOldOneWhereTheNewIsNotWhole(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		o := newOffice(t, d)
		id := o.put(t, generate(t, keyfile.ECDSAP256), keys.Issuer, "i")
		run(t, d, `DELETE FROM key_wrap WHERE key_id = $1 AND recipient_id = 'n1'`, id)
		if _, err := o.store.ReplaceRecovery(t.Context(), recovery(t), actor); !fault.Is(err, fault.Conflict) {
			t.Fatalf("error %v", err)
		}
		if _, err := o.store.RecoverAll(t.Context(), o.recovery, actor); err != nil {
			t.Fatalf("the old key opens it no more: %v", err)
		}
		if done, err := o.store.ReplaceRecovery(t.Context(), recovery(t), actor); err != nil || done.Keys != 1 || len(done.Old) != 2 {
			t.Errorf("%+v, %v", done, err)
		}
	})
}
