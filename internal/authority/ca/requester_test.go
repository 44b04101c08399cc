package ca

import (
	"context"
	"testing"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// byOfficerYAML is a profile with more for administrators than for operators.
const byOfficerYAML = `name: by-officer
names:
  required: true
  rules:
    - roles: [admin]
      dns: ["**.internal.test"]
    - roles: [operator]
      dns: ["**.example.com"]
usage: {key_usage: [digitalSignature], extended: [serverAuth]}
key: {algorithms: [ecdsa-p256]}
validity: {default: 30d}
approval: {two_person: true}
`

// TestApprovalUsesNoRightsThatTheRequesterLost has requests approved after what their requester was has changed.
func TestApprovalUsesNoRightsThatTheRequesterLost(t *testing.T) {
	no, yes := false, true
	cases := map[string]struct {
		change  access.Change
		deleted bool
		want    fault.Kind
	}{
		"demoted":  {change: access.Change{Roles: []access.Role{access.Operator}}, want: fault.Denied},
		"auditor":  {change: access.Change{Roles: []access.Role{access.Auditor}}, want: fault.Denied},
		"disabled": {change: access.Change{Disabled: &yes}, want: fault.Denied},
		"deleted":  {deleted: true, want: fault.Denied},
		"the same": {change: access.Change{Disabled: &no}},
	}
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), context.Background()
		saveProfile(t, a, byOfficerYAML)
		people := access.New(d, a.audit)
		a.known(admin())
		for name, c := range cases {
			p := must[access.Principal](t)(people.CreatePrincipal(ctx, admin(), access.Principal{
				Name: name, Kind: access.KindOperator, Roles: []access.Role{access.Admin},
			}, once.Call{}))
			r, _, err := a.Submit(ctx, p, Order{Profile: "by-officer", CSR: csr(t, newKey(t), "dns:a.internal.test")})
			check(t, err)
			if c.deleted {
				check(t, people.DeletePrincipal(ctx, admin(), p.ID, once.Call{}))
			} else {
				must[access.Principal](t)(people.UpdatePrincipal(ctx, admin(), p.ID, c.change, once.Call{}))
			}
			_, issued, err := a.Approve(ctx, officer(), r.ID)
			if c.want == "" {
				if err != nil || issued.Requester != p.ID {
					t.Errorf("%s: %+v, %v", name, issued, err)
				}
			} else if !fault.Is(err, c.want) {
				t.Errorf("%s: got %v, want %s", name, err, c.want)
			}
		}
	})
}

// TestChallengePasswordIsNotStoredWithAPendingRequest looks for the secret in what was written.
func TestChallengePasswordIsNotStoredWithAPendingRequest(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), context.Background()
		saveProfile(t, a, byOfficerYAML)
		name := must[cert.GeneralName](t)(cert.ParseGeneralName("dns:a.example.com"))
		request := must[[]byte](t)(cert.CreateCSR(&cert.CSRTemplate{SAN: []cert.GeneralName{name}, ChallengePassword: "open sesame"}, newKey(t)))
		bob := operator("bob", access.Operator)
		_, _, err := a.Submit(ctx, bob, Order{Profile: "by-officer", CSR: request})
		refusedAs(t, err, fault.Invalid)
		if n := a.count(`SELECT COUNT(*) FROM request`); n != 0 {
			t.Errorf("%d requests are stored", n)
		}
		must[*Certificate](t)(a.Issue(ctx, bob, Order{Profile: "server", CSR: request})) // of which nothing is kept
	})
}
