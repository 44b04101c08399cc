package keys_test

import (
	"slices"
	"testing"

	"chancery/internal/pki/keyfile"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
)

type found struct {
	key, recipient string
	rule           keys.Rule
}

// wantFindings checks with the recovery key, and that something was really looked at.
func wantFindings(t *testing.T, o *office, s *keys.Store, want []found) {
	t.Helper()
	findings, done, err := s.Check(t.Context(), o.recovery)
	if err != nil {
		t.Fatal(err)
	}
	var got []found
	for _, f := range findings {
		got = append(got, found{f.Key, f.Recipient, f.Rule})
		if f.Message == "" {
			t.Errorf("%+v says nothing", f)
		}
	}
	if !slices.Equal(got, want) || done.Keys == 0 || done.Opened == 0 {
		t.Fatalf("findings %+v of %+v\nwant %+v", findings, done, want)
	}
}

func TestCheckFindsEachWrong(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		tamper func(t *testing.T, o *office, a, b string)
		want   func(a, b string) []found
	}{
		"a wrap is missing": {func(t *testing.T, o *office, a, _ string) {
			run(t, o.d, `DELETE FROM key_wrap WHERE key_id = $1 AND recipient_id = 'recovery'`, a)
		}, func(a, _ string) []found { return []found{{a, "recovery", keys.MissingWrap}} }},
		"a wrap to one who is not entitled": {func(t *testing.T, o *office, a, _ string) {
			add(t, o.d, o.store, keys.Recipient{ID: "n2", Kind: keys.KindNode, Subsystems: []keys.Subsystem{"ocsp"}, PublicKey: nodeKey(t).Public()})
			run(t, o.d, `INSERT INTO key_wrap (key_id, recipient_id, wrap, created) SELECT key_id, 'n2', wrap, created FROM key_wrap
				WHERE key_id = $1 AND recipient_id = 'n1'`, a)
		}, func(a, _ string) []found { return []found{{a, "n2", keys.SuperfluousWrap}} }},
		"a wrap to nobody": {func(t *testing.T, o *office, a, _ string) {
			run(t, o.d, `INSERT INTO key_wrap (key_id, recipient_id, wrap, created) VALUES ($1, 'gone', $2, 0)`, a, []byte("x"))
		}, func(a, _ string) []found { return []found{{a, "gone", keys.SuperfluousWrap}} }},
		"this node's wrap is that of another key": {func(t *testing.T, o *office, a, b string) {
			run(t, o.d, `UPDATE key_wrap SET wrap = (SELECT w.wrap FROM key_wrap w WHERE w.key_id = $1 AND w.recipient_id = 'n1')
				WHERE key_id = $2 AND recipient_id = 'n1'`, b, a)
		}, func(a, _ string) []found { return []found{{a, "n1", keys.WrongWrap}} }},
		"this node's wrap is the recovery recipient's": {func(t *testing.T, o *office, a, _ string) {
			run(t, o.d, `UPDATE key_wrap SET wrap = (SELECT w.wrap FROM key_wrap w WHERE w.key_id = $1 AND w.recipient_id = 'recovery')
				WHERE key_id = $1 AND recipient_id = 'n1'`, a)
		}, func(a, _ string) []found { return []found{{a, "n1", keys.WrongWrap}} }},
		"the recovery recipient's wrap is garbage": {func(t *testing.T, o *office, a, _ string) {
			run(t, o.d, `UPDATE key_wrap SET wrap = $1 WHERE key_id = $2 AND recipient_id = 'recovery'`, []byte("garbage"), a)
		}, func(a, _ string) []found { return []found{{a, "recovery", keys.WrongWrap}} }},
		"a wrap is empty": {func(t *testing.T, o *office, a, _ string) {
			run(t, o.d, `UPDATE key_wrap SET wrap = $1 WHERE key_id = $2 AND recipient_id = 'n1'`, []byte{}, a)
		}, func(a, _ string) []found { return []found{{a, "n1", keys.WrongWrap}} }},
		"the ciphertexts are swapped": {func(t *testing.T, o *office, a, b string) {
			run(t, o.d, `UPDATE sealed_key SET ciphertext = (SELECT s.ciphertext FROM sealed_key s WHERE s.id = $1) WHERE id = $2`, b, a)
		}, func(a, _ string) []found { return []found{{a, "n1", keys.WrongWrap}, {a, "recovery", keys.WrongWrap}} }},
		"the key is given to another owner": {func(t *testing.T, o *office, a, _ string) {
			run(t, o.d, `UPDATE sealed_key SET owner = 'other' WHERE id = $1`, a)
		}, func(a, _ string) []found { return []found{{a, "n1", keys.WrongWrap}, {a, "recovery", keys.WrongWrap}} }},
		"the key is given another purpose": {func(t *testing.T, o *office, a, _ string) {
			run(t, o.d, `UPDATE sealed_key SET purpose = 'ocsp' WHERE id = $1`, a)
		}, func(a, _ string) []found { return []found{{a, "n1", keys.WrongWrap}, {a, "recovery", keys.WrongWrap}} }},
		"the public key is another": {func(t *testing.T, o *office, a, b string) {
			run(t, o.d, `UPDATE sealed_key SET spki = (SELECT s.spki FROM sealed_key s WHERE s.id = $1) WHERE id = $2`, b, a)
		}, func(a, _ string) []found { return []found{{a, "n1", keys.WrongKey}, {a, "recovery", keys.WrongKey}} }},
		"a key is gone and its wraps are not": {func(t *testing.T, o *office, a, _ string) {
			run(t, o.d, `DELETE FROM sealed_key WHERE id = $1`, a)
		}, func(a, _ string) []found {
			return []found{{a, "n1", keys.OrphanWrap}, {a, "recovery", keys.OrphanWrap}}
		}},
		"the recovery recipient is exchanged": {func(t *testing.T, o *office, _, _ string) {
			run(t, o.d, `UPDATE key_recipient SET public_key = $1 WHERE id = 'recovery'`, recovery(t).Public())
		}, func(a, b string) []found {
			return []found{{"", "recovery", keys.Unendorsed}, {"", "", keys.WrongRecipient}}
		}},
		"this node is said to run more": {func(t *testing.T, o *office, _, _ string) {
			run(t, o.d, `UPDATE key_recipient SET subsystems = 'ca,kra,ocsp' WHERE id = 'n1'`)
		}, func(a, b string) []found { return []found{{"", "n1", keys.Unendorsed}} }},
		"this node is exchanged": {func(t *testing.T, o *office, _, _ string) {
			run(t, o.d, `UPDATE key_recipient SET public_key = $1 WHERE id = 'n1'`, nodeKey(t).Public())
		}, func(a, b string) []found { return []found{{"", "n1", keys.WrongRecipient}} }},
		"the recovery recipient is gone": {func(t *testing.T, o *office, _, _ string) {
			run(t, o.d, `DELETE FROM key_recipient WHERE id = 'recovery'`)
			run(t, o.d, `DELETE FROM key_wrap WHERE recipient_id = 'recovery'`)
		}, func(a, b string) []found { return []found{{"", "", keys.NoRecovery}, {"", "", keys.WrongRecipient}} }},
	}
	if len(cases) < 15 {
		t.Fatalf("%d cases", len(cases))
	}
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		for name, c := range cases {
			t.Run(name, func(t *testing.T) {
				empty(t, d)
				o := newOffice(t, d)
				a := o.put(t, generate(t, keyfile.ECDSAP256), keys.Issuer, "i")
				b := o.put(t, generate(t, keyfile.ECDSAP256), keys.Issuer, "i")
				wantFindings(t, o, o.store, nil)
				c.tamper(t, o, a, b)
				wantFindings(t, o, o.store, c.want(a, b))
			})
		}
	})
}
