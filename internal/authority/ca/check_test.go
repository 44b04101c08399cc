package ca

import (
	"context"
	"testing"

	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// TestCheck finds each edit that somebody with the database could make.
func TestCheck(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, all := inventory(t, d)
		ctx := context.Background()
		findings, done, err := a.Check(ctx, 1)
		if err != nil || len(findings) != 0 {
			t.Fatalf("an untouched store: %v, %v", findings, err)
		}
		a.forget() // as on a node that was started just now: each certificate's issuer is asked for
		if findings, _, err := a.Check(ctx, 1); err != nil || len(findings) != 0 {
			t.Fatalf("with no issuer in memory: %v, %v", findings, err)
		}
		if done.Issuers != 2 || done.Certificates != int64(len(all))+2 || done.Revocations != 2 || done.Signatures != done.Certificates {
			t.Errorf("checked %+v", done)
		}
		for what, edit := range map[string][2]string{
			"a revoked certificate made valid": {`UPDATE certificate SET state = 'valid' WHERE state = 'revoked'`, `UPDATE certificate SET state = 'revoked' WHERE id IN (SELECT certificate FROM revocation WHERE state = 'revoked')`},
			"a revocation made a release":      {`UPDATE revocation SET state = 'valid' WHERE state = 'revoked'`, `UPDATE revocation SET state = 'revoked' WHERE state = 'valid'`},
			"an end moved":                     {`UPDATE certificate SET not_after = not_after + 1000000 WHERE profile = 'peer'`, `UPDATE certificate SET not_after = not_after - 1000000 WHERE profile = 'peer'`},
			"another certificate":              {`UPDATE certificate SET issuer = (SELECT number FROM issuer WHERE name = 'root') WHERE profile = 'peer'`, `UPDATE certificate SET issuer = (SELECT number FROM issuer WHERE name = 'issuing') WHERE profile = 'peer'`},
			"a change number":                  {`UPDATE revocation SET change = change + 100`, `UPDATE revocation SET change = change - 100`},
			"a revocation deleted":             {`UPDATE revocation SET certificate = certificate + 1 WHERE state = 'revoked'`, `UPDATE revocation SET certificate = certificate - 1 WHERE state = 'revoked'`},
		} {
			exec := func(query string) {
				t.Helper()
				check(t, d.Tx(ctx, func(tx *db.Tx) error {
					n, err := tx.Exec(ctx, query)
					if err == nil && n == 0 {
						t.Errorf("%s: nothing was edited", what)
					}
					return err
				}))
			}
			exec(edit[0])
			if findings, _, err := a.Check(ctx, 1); err != nil || len(findings) == 0 {
				t.Errorf("%s was not found, %v", what, err)
			}
			exec(edit[1])
			if findings, _, err := a.Check(ctx, 0); err != nil || len(findings) != 0 {
				t.Fatalf("%s, taken back: %v, %v", what, findings, err)
			}
		}
	})
}
