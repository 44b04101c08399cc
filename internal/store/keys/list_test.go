package keys_test

import (
	"crypto"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
)

// listed is an office whose node believes lists, and the public key that it checks them with.
func newListed(t *testing.T, d *db.DB) (o *office, anchors []crypto.PublicKey, file string) {
	t.Helper()
	o = newOffice(t, d)
	auditKey := generate(t, keyfile.Ed25519)
	o.put(t, auditKey, keys.Audit, "authority")
	anchors, file = []crypto.PublicKey{auditKey.Public()}, filepath.Join(t.TempDir(), "recipients")
	anchored(t, o.store, anchors, file)
	pkitest.Leave(t, filepath.Dir(file))
	return o, anchors, file
}

func anchored(t *testing.T, s *keys.Store, anchors []crypto.PublicKey, file string) {
	t.Helper()
	if err := s.Anchor(anchors, file); err != nil {
		t.Fatal(err)
	}
}

func first(t *testing.T, s *keys.Store) bool {
	t.Helper()
	did, err := s.FirstList(t.Context(), actor, now)
	if err != nil {
		t.Fatal(err)
	}
	return did
}

// join adds a node by the next list, as an approval does.
func join(t *testing.T, s *keys.Store, d *db.DB, id string) *keys.NodeKey {
	t.Helper()
	key := nodeKey(t)
	joinWith(t, s, d, id, key)
	return key
}

func joinWith(t *testing.T, s *keys.Store, d *db.DB, id string, key *keys.NodeKey) {
	t.Helper()
	r := keys.Recipient{ID: id, Kind: keys.KindNode, Name: id, Subsystems: []keys.Subsystem{"ca"}, PublicKey: key.Public()}
	err := s.ChangeList(t.Context(), []keys.Recipient{r}, nil, actor, now, func(tx *db.Tx) error { return s.AddRecipient(t.Context(), tx, r, actor, now) })
	if err != nil {
		t.Errorf("%s: %v", id, err)
	}
}

func leave(t *testing.T, s *keys.Store, id string) {
	t.Helper()
	err := s.ChangeList(t.Context(), nil, []string{id}, actor, now, func(tx *db.Tx) error { return s.RemoveRecipient(t.Context(), tx, id, actor, now) })
	if err != nil {
		t.Fatal(err)
	}
}

// trusted are the IDs of those to whom a node wraps.
func trusted(t *testing.T, s *keys.Store) string {
	t.Helper()
	all, err := s.Recipients(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, r := range all {
		if r.Endorsed {
			ids = append(ids, r.ID)
		}
	}
	return strings.Join(ids, " ")
}

// TestListTakesOver: endorsements decide until there is a list, and then no more.
func TestListTakesOver(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		o, anchors, _ := newListed(t, d)
		if got := trusted(t, o.store); got != "n1 recovery" {
			t.Fatalf("trusted before: %s", got)
		}
		if !first(t, o.store) || first(t, o.store) {
			t.Fatal("there is not one first list")
		}
		run(t, d, `DELETE FROM key_endorsement`)
		if got := trusted(t, o.store); got != "n1 recovery" {
			t.Fatalf("trusted by the list: %s", got)
		}
		// A second node, which never compared anything, goes by the list; and so does the first by the second's.
		two := newStore(t, d, "n2", join(t, o.store, d, "n2"))
		anchored(t, two, anchors, "")
		if n, err := o.store.Rewrap(t.Context(), "n2", actor); err != nil || n != 1 {
			t.Fatalf("%d wraps, %v", n, err)
		}
		three := newStore(t, d, "n3", join(t, two, d, "n3"))
		for name, s := range map[string]*keys.Store{"n1": o.store, "n2": two} {
			if got := trusted(t, s); got != "n1 n2 n3 recovery" {
				t.Errorf("%s trusts %s", name, got)
			}
		}
		if n, err := o.store.Rewrap(t.Context(), "n3", actor); err != nil || n != 1 {
			t.Errorf("%d wraps, %v", n, err)
		}
		if open, err := three.Openable(t.Context()); err != nil || open.Open != 1 || open.Entitled != 1 {
			t.Errorf("the third opens %+v, %v", open, err)
		}
		wantFindings(t, o, o.store, nil)

		// Whoever is added without a list is none.
		add(t, d, o.store, keys.Recipient{ID: "mallory", Kind: keys.KindNode, Subsystems: []keys.Subsystem{"ca"}, PublicKey: nodeKey(t).Public()})
		if got := trusted(t, o.store); strings.Contains(got, "mallory") {
			t.Errorf("trusted: %s", got)
		}
		if _, err := o.store.Rewrap(t.Context(), "mallory", actor); !fault.Is(err, fault.Conflict) {
			t.Errorf("wrapped to one who is not listed: %v", err)
		}
		run(t, d, `DELETE FROM key_recipient WHERE id = 'mallory'`)

		// The recovery key is replaced by lists too.
		next := recovery(t)
		if done, err := o.store.ReplaceRecovery(t.Context(), next, actor); err != nil || done.Keys != 1 || len(done.Old) != 1 {
			t.Fatalf("%+v, %v", done, err)
		}
		o.recovery = next
		wantFindings(t, o, two, nil)
	})
}

// TestOldAndForgedLists: whoever can write to the database gets nobody on the list, and nobody back.
func TestOldAndForgedLists(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		o, anchors, file := newListed(t, d)
		first(t, o.store)
		join(t, o.store, d, "n2")
		trusted(t, o.store)
		for _, table := range []string{"key_recipient", "key_endorsement", "recipient_list"} {
			run(t, d, `CREATE TABLE kept_`+table+` AS SELECT * FROM `+table)
		}
		leave(t, o.store, "n2")
		if got := trusted(t, o.store); got != "n1 recovery" {
			t.Fatalf("trusted: %s", got)
		}
		for _, table := range []string{"key_recipient", "key_endorsement"} {
			run(t, d, `INSERT INTO `+table+` SELECT * FROM kept_`+table+` WHERE 1 = 1 ON CONFLICT DO NOTHING`)
		}
		if got := trusted(t, o.store); got != "n1 recovery" {
			t.Fatalf("a row that was put back is trusted: %s", got)
		}
		run(t, d, `CREATE TABLE newest AS SELECT * FROM recipient_list WHERE version = 3`)
		again := newStore(t, d, "n1", o.node) // the node was started again, and has its file
		anchored(t, again, anchors, file)
		for what, change := range map[string]string{
			"the newest list is gone": `DELETE FROM recipient_list WHERE version = 3`,
			"all lists are gone":      `DELETE FROM recipient_list`,
			"an old one under its number": `UPDATE recipient_list SET body = (SELECT body FROM kept_recipient_list WHERE version = 2),
				signature = (SELECT signature FROM kept_recipient_list WHERE version = 2) WHERE version = 3`,
			"an old one as the newest": `INSERT INTO recipient_list SELECT 9, body, signature, created_at FROM kept_recipient_list WHERE version = 2`,
			"a changed one": `INSERT INTO recipient_list SELECT 9, REPLACE(body, '"version":3', '"version":9'), signature, created_at
				FROM recipient_list WHERE version = 3`,
		} {
			run(t, d, change)
			for name, s := range map[string]*keys.Store{"it": o.store, "it, started again,": again} {
				if got := trusted(t, s); got != "" {
					t.Errorf("%s: %s trusts %s", what, name, got)
				}
				if _, err := s.Rewrap(t.Context(), "n2", actor); !fault.Is(err, fault.Conflict) {
					t.Errorf("%s: %s wraps: %v", what, name, err)
				}
				if _, err := s.Seal(t.Context(), generate(t, keyfile.ECDSAP256), keys.Issuer, "i"); err == nil {
					t.Errorf("%s: %s seals a key to nobody", what, name)
				}
				if _, err := s.SignList(t.Context(), nil); !fault.Is(err, fault.Conflict) {
					t.Errorf("%s: %s signs another upon it: %v", what, name, err)
				}
				believed := strings.Contains(change, "SELECT 9")
				if l, doubt, err := s.BelievedList(t.Context()); err != nil || !fault.Is(doubt, fault.Conflict) ||
					believed != (l != nil) || believed && l.Version != 3 {
					t.Errorf("%s: %s believes %+v, doubting %v: %v", what, name, l, doubt, err)
				}
			}
			run(t, d, `DELETE FROM recipient_list`)
			run(t, d, `INSERT INTO recipient_list SELECT * FROM kept_recipient_list UNION ALL SELECT * FROM newest`)
		}
		if got := trusted(t, again); got != "n1 recovery" {
			t.Fatalf("trusted after all: %s", got)
		}

		// The newest good one is believed, and not the one seen, where more than one bad row is above both.
		behind := newStore(t, d, "n1", o.node)
		anchored(t, behind, anchors, "")
		run(t, d, `INSERT INTO recipient_list SELECT version + 6, body, signature, created_at FROM recipient_list`)
		if l, doubt, err := behind.BelievedList(t.Context()); err != nil || doubt == nil || l == nil || l.Version != 3 {
			t.Errorf("it believes %+v, doubting %v: %v", l, doubt, err)
		}
		run(t, d, `DELETE FROM recipient_list WHERE version > 3`)
		if l, doubt, err := again.BelievedList(t.Context()); err != nil || doubt != nil || l.Version != 3 {
			t.Errorf("it believes %+v, doubting %v: %v", l, doubt, err)
		}

		// A list that another key has signed is none, and a file that was cut is refused rather than forgotten.
		stranger := newStore(t, d, "n1", o.node)
		anchored(t, stranger, []crypto.PublicKey{generate(t, keyfile.Ed25519).Public()}, "")
		if got := trusted(t, stranger); got != "" {
			t.Errorf("a list by another key is believed: %s", got)
		}
		pkitest.IsLeft(t, file) // a node that runs as another user than a command that saw a newer list reads it as well
		if err := os.WriteFile(file, []byte("3"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := newStore(t, d, "n1", o.node).Anchor(anchors, file); !fault.Is(err, fault.Invalid) {
			t.Errorf("a file that was cut: %v", err)
		}
	})
}

// TestListsAtOnce: of two that are signed upon one, the second is signed again.
func TestListsAtOnce(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		o, _, _ := newListed(t, d)
		first(t, o.store)
		late, err := o.store.SignList(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		join(t, o.store, d, "n2")
		err = d.Tx(t.Context(), func(tx *db.Tx) error { return o.store.PutList(t.Context(), tx, late, actor, now) })
		if err != keys.ErrListMoved {
			t.Fatalf("a list upon an old one: %v", err)
		}
		var joins sync.WaitGroup
		for _, id := range []string{"a", "b", "c", "d"} {
			key := nodeKey(t)
			joins.Go(func() { joinWith(t, o.store, d, id, key) })
		}
		joins.Wait()
		if got := trusted(t, o.store); got != "a b c d n1 n2 recovery" {
			t.Errorf("trusted: %s", got)
		}
		if l, err := o.store.NewestList(t.Context()); err != nil || l.Version != 6 {
			t.Errorf("%+v, %v", l, err)
		}
	})
}
