package ca

import (
	"context"
	"slices"
	"strings"
	"testing"

	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
	"chancery/internal/store/settings"
)

// guardedYAML is a profile whose certificates two people must want.
const guardedYAML = `name: guarded
names:
  required: true
  rules:
    - roles: [operator, officer, admin]
      dns: ["**.example.com"]
    - roles: [host]
      dns: ["${host.names}"]
usage: {key_usage: [digitalSignature], extended: [serverAuth]}
key: {algorithms: [ecdsa-p256]}
validity: {default: 30d}
approval: {two_person: true}
`

func saveProfile(t testing.TB, a *authority, document string) {
	t.Helper()
	_, _, err := a.profiles.Save(context.Background(), admin(), []byte(document), 0, once.Call{})
	check(t, err)
}

// TestTwoPersonRule walks a request from submission to certificate.
func TestTwoPersonRule(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		ctx := context.Background()
		saveProfile(t, a, guardedYAML)
		order := Order{IdempotencyKey: "r1", Profile: "guarded", CSR: csr(t, newKey(t), "dns:a.example.com")}
		_, err := a.Issue(ctx, officer(), order)
		refusedAs(t, err, fault.Denied)
		r, c, err := a.Submit(ctx, officer(), order)
		if err != nil || c != nil || r.State != RequestPending || r.Subject != "CN=a.example.com (dns:a.example.com)" {
			t.Fatalf("submit: %+v, %v, %v", r, c, err)
		}
		if again, _, err := a.Submit(ctx, officer(), order); err != nil || again.ID != r.ID {
			t.Errorf("the repeated submission is %+v, %v", again, err)
		}
		_, _, err = a.Approve(ctx, officer(), r.ID)
		refusedAs(t, err, fault.Denied)
		_, _, err = a.Approve(ctx, operator("bob", access.Operator), r.ID)
		refusedAs(t, err, fault.Denied)
		other := operator("otto", access.Officer)
		a.known(admin(), other, officer())
		if r, err = a.Assign(ctx, admin(), r.ID, admin().ID, once.Call{}); err != nil || r.AssignedTo != admin().ID {
			t.Fatalf("assign: %+v, %v", r, err)
		}
		_, _, err = a.Approve(ctx, other, r.ID)
		refusedAs(t, err, fault.Conflict)
		_, err = a.Reject(ctx, other, r.ID, "no", once.Call{})
		refusedAs(t, err, fault.Conflict)
		if _, err = a.Assign(ctx, other, r.ID, "", once.Call{}); err != nil {
			t.Fatal(err)
		}
		done, issued, err := a.Approve(ctx, other, r.ID)
		if err != nil || done.State != RequestIssued || done.DecidedBy != other.ID || issued.Requester != officer().ID {
			t.Fatalf("approve: %+v, %+v, %v", done, issued, err)
		}
		got, fetched, err := a.Retrieve(ctx, officer(), r.ID)
		if err != nil || got.State != RequestIssued || fetched.ID != issued.ID {
			t.Errorf("retrieve: %+v, %v", got, err)
		}
		_, _, err = a.Approve(ctx, operator("third", access.Officer), r.ID)
		refusedAs(t, err, fault.Conflict)
		_, err = a.Reject(ctx, other, r.ID, "too late", once.Call{})
		refusedAs(t, err, fault.Conflict)
		if n := a.count(`SELECT COUNT(*) FROM certificate WHERE profile = 'guarded'`); n != 1 {
			t.Errorf("%d certificates", n)
		}
	})
}

// TestRequestAssignedToOneWhoMayNotDecideIsRefused: it waited for ever, since nobody else could decide it; and what others
// were told named its officer by a UUID.
func TestRequestAssignedToOneWhoMayNotDecideIsRefused(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		ctx := context.Background()
		saveProfile(t, a, guardedYAML)
		gone := operator("gone", access.Officer)
		gone.Disabled = true
		a.known(admin(), operator("otto", access.Operator), operator("bob", access.Officer), gone)
		r, _, err := a.Submit(ctx, officer(), Order{Profile: "guarded", CSR: csr(t, newKey(t), "dns:a.example.com")})
		check(t, err)
		for who, want := range map[string]fault.Kind{"id-otto": fault.Invalid, "id-gone": fault.Invalid, "id-nobody": fault.NotFound} {
			_, err := a.Assign(ctx, admin(), r.ID, who, once.Call{})
			refusedAs(t, err, want)
		}
		r, err = a.Assign(ctx, admin(), r.ID, "id-bob", once.Call{})
		check(t, err)
		_, _, err = a.Approve(ctx, admin(), r.ID)
		refusedAs(t, err, fault.Conflict)
		if text := err.Error(); !strings.Contains(text, "assigned to bob") || strings.Contains(text, "id-bob") {
			t.Errorf("refused with %q", text)
		}
	})
}

// TestRequestEnds cancels and rejects, and shows requests to those whom they concern only.
func TestRequestEnds(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		ctx := context.Background()
		saveProfile(t, a, guardedYAML)
		h, stranger := host("h1.example.com"), host("h2.example.com")
		submit := func() *Request {
			r, _, err := a.Submit(ctx, h, Order{Profile: "guarded", CSR: csr(t, newKey(t), "dns:h1.example.com")})
			check(t, err)
			return r
		}
		first, second := submit(), submit()
		_, _, err := a.Retrieve(ctx, stranger, first.ID)
		refusedAs(t, err, fault.NotFound)
		_, err = a.Cancel(ctx, stranger, first.ID, once.Call{})
		refusedAs(t, err, fault.NotFound)
		_, err = a.Cancel(ctx, officer(), first.ID, once.Call{})
		refusedAs(t, err, fault.Denied)
		_, _, err = a.Requests(ctx, stranger, RequestFilter{Requester: h.ID}, "", 10)
		refusedAs(t, err, fault.Denied)
		if list, _, err := a.Requests(ctx, stranger, RequestFilter{}, "", 10); err != nil || len(list) != 0 {
			t.Errorf("a stranger sees %d requests, %v", len(list), err)
		}
		if list, next, err := a.Requests(ctx, officer(), RequestFilter{State: RequestPending}, "", 1); err != nil || len(list) != 1 || list[0].ID != second.ID || next == "" {
			t.Errorf("the first page: %v, %q, %v", list, next, err)
		} else if list, _, err = a.Requests(ctx, officer(), RequestFilter{State: RequestPending}, next, 1); err != nil || list[0].ID != first.ID {
			t.Errorf("the second page: %v, %v", list, err)
		}
		for range 2 { // a repeated call changes nothing
			if r := must[*Request](t)(a.Cancel(ctx, h, first.ID, once.Call{})); r.State != RequestCancelled {
				t.Errorf("cancelled: %+v", r)
			}
			if r := must[*Request](t)(a.Reject(ctx, officer(), second.ID, "not this one", once.Call{})); r.State != RequestRejected || r.Reason != "not this one" {
				t.Errorf("rejected: %+v", r)
			}
		}
		_, _, err = a.Approve(ctx, officer(), first.ID)
		refusedAs(t, err, fault.Conflict)
		_, err = a.Cancel(ctx, h, second.ID, once.Call{})
		refusedAs(t, err, fault.Conflict)
		_, _, err = a.Submit(ctx, h, Order{Profile: "guarded", CSR: csr(t, newKey(t), "dns:h2.example.com")})
		refusedAs(t, err, fault.Denied)
		a.settingsWith(func(s *settings.Settings) { s.Limits.PendingRequests = 1 })
		submit()
		_, _, err = a.Submit(ctx, h, Order{Profile: "guarded", CSR: csr(t, newKey(t), "dns:h1.example.com")})
		refusedAs(t, err, fault.RateLimited)
	})
}

// TestSubmitAtOnce issues what needs no approval.
func TestSubmitAtOnce(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		ctx := context.Background()
		order := Order{IdempotencyKey: "k", Profile: "server", CSR: csr(t, newKey(t), "dns:a.example.com")}
		r, c, err := a.Submit(ctx, operator("bob", access.Operator), order)
		if err != nil || r != nil || c == nil {
			t.Fatalf("%v, %v, %v", r, c, err)
		}
		if _, again, err := a.Submit(ctx, operator("bob", access.Operator), order); err != nil || again.ID != c.ID {
			t.Errorf("repeated: %v, %v", again, err)
		}
		if !slices.Contains(c.searchNames(), "a.example.com") {
			t.Errorf("names %v", c.searchNames())
		}
	})
}
