package ca

import (
	"context"
	"testing"

	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/settings"
)

// TestOperatorInALoopIsBoundToo asks for one name again and again, with a new key each time.
func TestOperatorInALoopIsBoundToo(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), context.Background()
		a.settingsWith(func(s *settings.Settings) { s.Limits.OperatorDuplicates = 3 })
		bob := operator("bob", access.Operator)
		order := func(name string) Order { return Order{Profile: "server", CSR: csr(t, newKey(t), "dns:"+name)} }
		keyed := order("a.example.com")
		keyed.IdempotencyKey = "k"
		first := must[*Certificate](t)(a.Issue(ctx, bob, keyed))
		for range 2 {
			must[*Certificate](t)(a.Issue(ctx, bob, order("a.example.com")))
		}
		_, err := a.Issue(ctx, bob, order("a.example.com"))
		refusedAs(t, err, fault.RateLimited)
		_, err = a.Renew(ctx, bob, Ref{Serial: first.Serial}, RenewOrder{})
		refusedAs(t, err, fault.RateLimited)
		if again := must[*Certificate](t)(a.Issue(ctx, bob, keyed)); again.ID != first.ID {
			t.Errorf("the repeated call got %d, not %d", again.ID, first.ID)
		}
		must[*Certificate](t)(a.Issue(ctx, bob, order("b.example.com")))
		must[*Certificate](t)(a.Issue(ctx, operator("ben", access.Operator), order("a.example.com")))
	})
}

// TestLoopRoundNodesIsBoundToo has a node forget what it was asked after every second order: each of eight nodes has seen as
// little when the limit is reached.
func TestLoopRoundNodesIsBoundToo(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), context.Background()
		const limit = 16
		a.settingsWith(func(s *settings.Settings) { s.Limits.OperatorDuplicates = limit })
		bob := operator("bob", access.Operator)
		issue := func() error {
			_, err := a.Issue(ctx, bob, Order{Profile: "server", CSR: csr(t, newKey(t), "dns:a.example.com")})
			return err
		}
		for i := range limit {
			if i%(limit/seldom) == 0 {
				a.asked.young = nil // as a node that was not asked before
			}
			check(t, issue())
		}
		refusedAs(t, issue(), fault.RateLimited)
	})
}

// TestIdentitiesCountForTheirCaller enrols in a loop: the rate is the caller's, and the names are the principal's.
func TestIdentitiesCountForTheirCaller(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), context.Background()
		_, _, err := a.CreateIssuer(ctx, admin(), IssuerSpec{Name: "identities", Subject: "CN=Identities", Pool: IdentityPool, Default: true})
		check(t, err)
		a.settingsWith(func(s *settings.Settings) { s.Limits.OperatorDuplicates = 3 })
		enrol := func(by access.Principal, subject string) error {
			_, err := a.IssueIdentity(ctx, by, callersIdentities, Order{PublicKey: spkiOf(t, newKey(t)), Subject: "CN=" + subject}, nil)
			return err
		}
		for range 3 {
			check(t, enrol(admin(), "bob"))
		}
		refusedAs(t, enrol(admin(), "bob"), fault.RateLimited)
		check(t, enrol(admin(), "ben"))
		a.settingsWith(func(s *settings.Settings) { s.Limits.OperatorRate = settings.Rate{PerSecond: 0.001, Burst: 1} })
		loop := operator("loop", access.Auditor)
		check(t, enrol(loop, "one"))
		refusedAs(t, enrol(loop, "two"), fault.RateLimited)
		check(t, enrol(operator("other", access.Auditor), "three"))
	})
}
