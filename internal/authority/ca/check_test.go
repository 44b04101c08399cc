package ca

import (
	"context"
	"testing"

	"chancery/internal/pki/crl"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

func (a *authority) findings() (found []CheckFinding, done Checked) {
	a.t.Helper()
	done, err := a.Check(context.Background(), func(f CheckFinding) bool { found = append(found, f); return true })
	check(a.t, err)
	return found, done
}

func (a *authority) exec(query string, args ...any) {
	a.t.Helper()
	check(a.t, a.db.Tx(context.Background(), func(tx *db.Tx) error {
		_, err := tx.Exec(context.Background(), query, args...)
		return err
	}))
}

// TestCheckFindsTampering changes rows behind the service's back.
func TestCheckFindsTampering(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		ctx := context.Background()
		c, other := a.server("dns:a.example"), a.server("dns:b.example")
		_, err := a.Revoke(ctx, officer(), Ref{Serial: other.Serial}, RevokeOrder{Reason: crl.Superseded})
		check(t, err)
		held := a.server("dns:c.example")
		_, err = a.Hold(ctx, officer(), Ref{Serial: held.Serial}, "")
		check(t, err)
		_, err = a.Release(ctx, officer(), Ref{Serial: held.Serial}, "")
		check(t, err)
		found, done := a.findings()
		if len(found) > 0 || done.Certificates < 5 || done.Signatures != done.Certificates || done.Revocations != 2 {
			t.Fatalf("before: %v, %+v", found, done)
		}
		flipped := append([]byte(nil), c.DER...)
		flipped[len(flipped)-1] ^= 1
		for _, step := range []struct {
			rule CheckRule
			do   func()
			undo func()
		}{
			{WrongSignature, func() { a.exec(`UPDATE certificate SET der = $1 WHERE id = $2`, flipped, c.ID) },
				func() { a.exec(`UPDATE certificate SET der = $1 WHERE id = $2`, c.DER, c.ID) }},
			{WrongRecord, func() { a.exec(`UPDATE certificate SET not_after = not_after + 1000000 WHERE id = $1`, c.ID) },
				func() { a.exec(`UPDATE certificate SET not_after = not_after - 1000000 WHERE id = $1`, c.ID) }},
			{WrongRecord, func() { a.exec(`UPDATE certificate SET der = $1 WHERE id = $2`, []byte("x"), c.ID) },
				func() { a.exec(`UPDATE certificate SET der = $1 WHERE id = $2`, c.DER, c.ID) }},
			{WrongRevocation, func() { a.exec(`UPDATE certificate SET state = 'valid' WHERE id = $1`, other.ID) },
				func() { a.exec(`UPDATE certificate SET state = 'revoked' WHERE id = $1`, other.ID) }},
			{WrongRevocation, func() { a.exec(`UPDATE certificate SET state = 'revoked' WHERE id = $1`, c.ID) },
				func() { a.exec(`UPDATE certificate SET state = 'valid' WHERE id = $1`, c.ID) }},
			{WrongRevocation, func() { a.exec(`UPDATE revocation SET reason = 1 WHERE certificate = $1`, other.ID) },
				func() { a.exec(`UPDATE revocation SET reason = 4 WHERE certificate = $1`, other.ID) }},
			{UnknownIssuer, func() { a.exec(`UPDATE certificate SET issuer = 999999 WHERE id = $1`, c.ID) },
				func() { a.exec(`UPDATE certificate SET issuer = $1 WHERE id = $2`, a.issuer.number, c.ID) }},
			{SerialTwice, func() {
				a.exec(`DROP INDEX certificate_serial`)
				a.exec(`UPDATE certificate SET serial = $1 WHERE id = $2`, serialKey(other.Serial), c.ID)
			}, func() { a.exec(`UPDATE certificate SET serial = $1 WHERE id = $2`, serialKey(c.Serial), c.ID) }},
		} {
			step.do()
			found, _ := a.findings()
			if len(found) == 0 || found[0].Rule != step.rule {
				t.Errorf("%s: found %v", step.rule, found)
			}
			step.undo()
			if found, _ := a.findings(); len(found) > 0 {
				t.Fatalf("%s: after it was undone: %v", step.rule, found)
			}
		}
	})
}
