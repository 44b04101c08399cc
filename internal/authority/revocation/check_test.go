package revocation

import (
	"slices"
	"testing"

	"chancery/internal/authority/ca"
	"chancery/internal/pki/crl"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// TestCheckFindsWhatListsLack changes lists and records behind the service's back.
func TestCheckFindsWhatListsLack(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		o := newOffice(t, d, ca.CRLMode{}, nil)
		stop := o.run()
		a, b := o.issue("a.example"), o.issue("b.example")
		o.revoke(a, crl.AffiliationChanged)
		o.revoke(b, crl.Superseded)
		o.list(Complete, func(l *crl.List) bool { return l.Count == 2 })
		stop()
		exec := func(query string, args ...any) {
			t.Helper()
			must(t, d.Tx(t.Context(), func(tx *db.Tx) error {
				_, err := tx.Exec(t.Context(), query, args...)
				return err
			}))
		}
		findings := func() (rules []CheckRule) {
			t.Helper()
			done, err := o.service.Check(t.Context(), func(f CheckFinding) bool { rules = append(rules, f.Rule); return true })
			must(t, err)
			if done.Lists != 1 {
				t.Errorf("%d lists were checked", done.Lists)
			}
			return rules
		}
		if found := findings(); len(found) > 0 {
			t.Fatalf("before: %v", found)
		}
		for _, step := range []struct {
			rule     CheckRule
			do, undo string
		}{
			{Surplus, `DELETE FROM revocation WHERE certificate = (SELECT MIN(certificate) FROM revocation)`, ``},
			{Backwards, `UPDATE crl_number SET number = '1'`, `UPDATE crl_number SET number = '99999999999999999999'`},
			{WrongRow, `UPDATE crl SET next_update = next_update + 1000000 WHERE state = 'current'`,
				`UPDATE crl SET next_update = next_update - 1000000 WHERE state = 'current'`},
			{Missing, `UPDATE crl SET change = 1000 WHERE state = 'current'`, ``},
		} {
			if step.rule == Missing {
				// A certificate revoked while nobody signs, and a list that claims to cover it.
				o.revoke(o.issue("c.example"), crl.AffiliationChanged)
			}
			exec(step.do)
			if found := findings(); len(found) == 0 || !slices.Contains(found, step.rule) {
				t.Errorf("%s: found %v", step.rule, found)
			}
			if step.undo != "" {
				exec(step.undo)
			}
		}
	})
}
