package ca

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/crl"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// inventory is an authority with a few certificates of each sort.
func inventory(t *testing.T, d *db.DB) (*authority, map[string]*Certificate) {
	a := newAuthority(t, d)
	ctx := context.Background()
	all := map[string]*Certificate{}
	issue := func(label string, by access.Principal, order Order) {
		order.PublicKey = spkiOf(t, newKey(t))
		all[label] = must[*Certificate](t)(a.Issue(ctx, by, order))
	}
	issue("web1", admin(), Order{Profile: "server", Names: []string{"dns:web1.example.com", "dns:www.example.com", "ip:192.0.2.1"}})
	issue("web2", admin(), Order{Profile: "server", Names: []string{"dns:Web2.Example.com", "dns:www.example.com"}, Validity: 5 * 24 * time.Hour})
	issue("wild", admin(), Order{Profile: "server", Names: []string{"dns:*.example.com"}, Validity: 10 * 24 * time.Hour})
	issue("db", operator("bob", access.Operator), Order{Profile: "peer", Names: []string{"dns:db.example.net"}})
	issue("person", admin(), Order{Profile: "client", Subject: "CN=Paula Person,O=Test", Names: []string{"email:paula@example.com"}})
	issue("gone", admin(), Order{Profile: "server", Names: []string{"dns:gone.example.com"}, Validity: 6 * 24 * time.Hour})
	issue("held", admin(), Order{Profile: "server", Names: []string{"dns:held.example.com"}})
	all["gone"] = must[*Certificate](t)(a.Revoke(ctx, admin(), Ref{Serial: all["gone"].Serial}, RevokeOrder{Reason: crl.Superseded}))
	all["held"] = must[*Certificate](t)(a.Hold(ctx, admin(), Ref{Serial: all["held"].Serial}, ""))
	all["web2b"] = must[*Certificate](t)(a.Renew(ctx, admin(), Ref{Serial: all["web2"].Serial}, RenewOrder{}))
	return a, all
}

// TestSearch finds by each part of the filter, on pages of every length.
func TestSearch(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, all := inventory(t, d)
		ctx := context.Background()
		now := time.Now()
		const day = 24 * time.Hour
		for what, c := range map[string]struct {
			filter Filter
			want   []string
		}{
			"a name":            {Filter{Name: "web1.example.com"}, []string{"web1"}},
			"another case":      {Filter{Name: "WEB2.example.com."}, []string{"web2", "web2b"}},
			"a second name":     {Filter{Name: "www.example.com"}, []string{"web1", "web2", "web2b"}},
			"an address":        {Filter{Name: "192.0.2.1"}, []string{"web1"}},
			"a mailbox":         {Filter{Name: "paula@example.com"}, []string{"person"}},
			"a common name":     {Filter{Name: "paula person"}, []string{"person"}},
			"a wildcard":        {Filter{Name: "*.example.com"}, []string{"wild"}},
			"a beginning":       {Filter{Name: "we*"}, []string{"web1", "web2", "web2b"}},
			"a beginning twice": {Filter{Name: "w*", Unreplaced: true}, []string{"web1", "web2b"}},
			"no such name":      {Filter{Name: "nothing.example.com"}, nil},
			"a serial":          {Filter{Serial: all["db"].Serial}, []string{"db"}},
			"an issuer":         {Filter{Issuer: "root"}, []string{"-", "-"}},
			"a profile":         {Filter{Profile: "peer"}, []string{"db"}},
			"a requester":       {Filter{Requester: "id-bob"}, []string{"db"}},
			"revoked":           {Filter{State: Revoked}, []string{"gone"}},
			"held":              {Filter{State: Held, Profile: "server"}, []string{"held"}},
			"valid":             {Filter{State: Valid, Issuer: "issuing"}, []string{"web1", "web2", "web2b", "wild", "db", "person"}},
			"expired":           {Filter{State: Expired}, nil},
			"ends soon":         {Filter{ExpiresBefore: now.Add(11 * day)}, []string{"web2", "gone", "wild"}},
			"ends soon, live":   {Filter{ExpiresBefore: now.Add(11 * day), State: Valid, Unreplaced: true}, []string{"wild"}},
			"ends in between":   {Filter{ExpiresAfter: now.Add(7 * day), ExpiresBefore: now.Add(11 * day)}, []string{"wild"}},
		} {
			var want []int64
			for _, label := range c.want {
				if label != "-" {
					want = append(want, all[label].ID)
				}
			}
			for _, limit := range []int{1, 2, 100} {
				var got []int64
				for after, n := "", 0; ; n++ {
					page, next, err := a.Search(ctx, admin(), c.filter, after, limit)
					check(t, err)
					for _, found := range page {
						if !slices.Contains(got, found.ID) {
							got = append(got, found.ID)
						} else if c.filter.Name == "" {
							t.Errorf("%s: %d is on two pages", what, found.ID)
						}
					}
					if after = next; after == "" {
						break
					}
					if n > 50 {
						t.Fatalf("%s: pages without end", what)
					}
				}
				if c.want != nil && c.want[0] == "-" {
					if len(got) != len(c.want) {
						t.Errorf("%s: %d found", what, len(got))
					}
					continue
				}
				slices.Sort(got)
				slices.Sort(want)
				if !slices.Equal(got, want) {
					t.Errorf("%s, %d a page: got %v, want %v", what, limit, got, c.want)
				}
			}
		}
		for _, bad := range []Filter{{Name: "a*b"}, {State: "lost"}} {
			_, _, err := a.Search(ctx, admin(), bad, "", 10)
			refusedAs(t, err, fault.Invalid)
		}
		_, next, err := a.Search(ctx, admin(), Filter{}, "", 1)
		check(t, err)
		for _, key := range []string{"x", "AAAA", next + "!"} {
			_, _, err = a.Search(ctx, admin(), Filter{}, key, 1)
			refusedAs(t, err, fault.Invalid)
		}
		_, _, err = a.Search(ctx, admin(), Filter{ExpiresBefore: now}, next, 1)
		refusedAs(t, err, fault.Invalid)
	})
}

// TestExport writes the inventory as CSV and JSON.
func TestExport(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, all := inventory(t, d)
		ctx := context.Background()
		var sheet, lines bytes.Buffer
		check(t, a.Export(ctx, admin(), &sheet, CSV, Filter{}))
		rows := must[[][]string](t)(csv.NewReader(&sheet).ReadAll())
		if len(rows) != len(all)+3 || !slices.Equal(rows[0], exportHeader) {
			t.Errorf("%d rows, header %v", len(rows), rows[0])
		}
		check(t, a.Export(ctx, admin(), &lines, JSON, Filter{Profile: "server"}))
		decoder, n := json.NewDecoder(&lines), 0
		for decoder.More() {
			var e exported
			check(t, decoder.Decode(&e))
			if n++; e.Subject == "CN=gone.example.com" && (e.Reason != "superseded" || e.RevokedAt == "" || e.State != Revoked) {
				t.Errorf("%+v", e)
			}
		}
		if n != 6 {
			t.Errorf("%d lines", n)
		}
		refusedAs(t, a.Export(ctx, admin(), &lines, "xml", Filter{}), fault.Invalid)
		counts := must[[]ExpiryCount](t)(a.Expiring(ctx, []int64{30, 14, 7, 0}))
		// web2 ends in 5 days and was renewed, gone was revoked: only wild, in 10 days, will be missed.
		if want := []ExpiryCount{{30, 1}, {14, 1}, {7, 0}, {0, 0}}; !slices.Equal(counts, want) {
			t.Errorf("expiring %v, want %v", counts, want)
		}
	})
}

// TestPlans holds the queries that must be cheap at a million rows against SQLite's plans.
func TestPlans(t *testing.T) {
	d := pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)})
	ctx := context.Background()
	checked := 0
	for query, want := range map[string]string{
		`SELECT COUNT(*) FROM certificate WHERE state = 'valid' AND replaced_by = 0 AND not_after >= 1 AND not_after < 2`:            "COVERING INDEX certificate_live",
		strings.NewReplacer("$1", "1", "$2", "2").Replace(endingOwn):                                                                 "INDEX certificate_own (profile=? AND not_after>? AND not_after<?)",
		`SELECT c.id ` + certificateFrom + ` WHERE c.serial = x'01' AND c.issuer = 1`:                                                "certificate_serial",
		`SELECT c.id ` + certificateFrom + ` WHERE c.name = x'01' AND c.id >= 5 ORDER BY c.name, c.id DESC LIMIT 3`:                  "certificate_by_name",
		`SELECT c.id ` + certificateFrom + ` WHERE c.requester = 'a' ORDER BY c.id DESC LIMIT 3`:                                     "certificate_by_requester",
		`SELECT c.id ` + certificateFrom + ` WHERE c.profile = 'a' ORDER BY c.id DESC LIMIT 3`:                                       "certificate_by_profile",
		`SELECT c.id ` + certificateFrom + ` WHERE c.issuer = 5 ORDER BY c.id DESC LIMIT 3`:                                          "certificate_by_issuer",
		`SELECT c.id ` + certificateFrom + ` WHERE c.not_after < 5 ORDER BY c.not_after, c.id LIMIT 3`:                               "certificate_by_expiry",
		strings.NewReplacer("$1", "'a'", "$2", "'b'", "$3", "5").Replace(onHold):                                                     "certificate_by_requester",
		strings.NewReplacer("$1", "'a'", "$2", "5", "$3", "5").Replace(revokedOf):                                                    "certificate_by_requester",
		strings.ReplaceAll(remaining("5"), "$1", "1"):                                                                                "n USING INDEX certificate_by_requester",
		`SELECT entry FROM revocation WHERE issuer = 1 AND change > 5 AND crl_partition = 0 AND (state = 'revoked') ORDER BY change`: "revocation_",
	} {
		check(t, d.Read(ctx, func(tx *db.Tx) error {
			rows, err := tx.Query(ctx, "EXPLAIN QUERY PLAN "+query)
			if err != nil {
				return err
			}
			defer rows.Close()
			var plan strings.Builder
			for rows.Next() {
				var a, b, c int
				var detail string
				if err := rows.Scan(&a, &b, &c, &detail); err != nil {
					return err
				}
				fmt.Fprintln(&plan, detail)
			}
			if !strings.Contains(plan.String(), want) || strings.Contains(plan.String(), "SCAN") || strings.Contains(plan.String(), "TEMP B-TREE") {
				t.Errorf("%s\n%s", query, &plan)
			}
			checked++
			return rows.Err()
		}))
	}
	if checked != 12 {
		t.Fatalf("%d plans were checked", checked)
	}
}

// TestTheAuthoritysOwnCertificatesAreNotCountedAsEnding: they live for days and renew themselves, so status warned for ever of
// certificates that end.
func TestTheAuthoritysOwnCertificatesAreNotCountedAsEnding(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		ctx := context.Background()
		ends := time.Now().Add(5 * 24 * time.Hour)
		_, err := a.IssueResponder(ctx, a.issuer, spkiOf(t, newKey(t)), ends, nil)
		check(t, err)
		must[*Certificate](t)(a.Issue(ctx, admin(), Order{Profile: "server", Names: []string{"dns:web.example.com"},
			PublicKey: spkiOf(t, newKey(t)), Validity: 5 * 24 * time.Hour}))
		if n := a.count(`SELECT COUNT(*) FROM certificate WHERE profile = 'ocsp-responder'`); n != 1 {
			t.Fatalf("%d certificates of responders; the test would prove nothing", n)
		}
		counts := must[[]ExpiryCount](t)(a.Expiring(ctx, []int64{30, 7}))
		if want := []ExpiryCount{{30, 1}, {7, 1}}; !slices.Equal(counts, want) {
			t.Errorf("expiring %v, want %v", counts, want)
		}
	})
}
