package doctor

import (
	"context"
	"strings"
	"testing"
	"time"

	"chancery/internal/fleet/trust"
	"chancery/internal/upkeep/finding"
)

// want finds a finding of the given check and level whose message holds text.
func want(t *testing.T, all []finding.Finding, level finding.Level, check, text string) {
	t.Helper()
	for _, f := range all {
		if f.Level == level && f.Check == check && strings.Contains(f.Message, text) {
			return
		}
	}
	t.Errorf("no %s of %s with %q among %v", level, check, text, all)
}

func TestIssuersAndTheirCRLs(t *testing.T) {
	now := time.Now()
	year := 365 * 24 * time.Hour
	n := &Node{OfflineWarning: 60 * 24 * time.Hour}
	for name, c := range map[string]struct {
		state       IssuerState
		level       finding.Level
		check, text string
	}{
		"fine":       {IssuerState{Online: true, NotAfter: now.Add(year), NextUpdate: now.Add(time.Hour)}, finding.OK, "issuer.crl", "fresh"},
		"in time":    {IssuerState{Online: true, NotAfter: now.Add(year), RenewAt: now.Add(-time.Minute), NextUpdate: now.Add(time.Hour)}, finding.OK, "issuer.crl", "fresh"},
		"late":       {IssuerState{Online: true, NotAfter: now.Add(year), RenewAt: now.Add(-time.Hour), NextUpdate: now.Add(time.Hour)}, finding.Warning, "issuer.crl", "was to be signed anew"},
		"stale":      {IssuerState{Online: true, NotAfter: now.Add(year), NextUpdate: now.Add(-time.Hour)}, finding.Error, "issuer.crl", "past nextUpdate"},
		"none":       {IssuerState{Online: true, NotAfter: now.Add(year)}, finding.Error, "issuer.crl", "no CRL"},
		"offline 59": {IssuerState{NotAfter: now.Add(year), NextUpdate: now.Add(59 * 24 * time.Hour)}, finding.Warning, "issuer.crl", "offline root"},
		"offline 61": {IssuerState{NotAfter: now.Add(year), NextUpdate: now.Add(61 * 24 * time.Hour)}, finding.OK, "issuer.crl", "fresh"},
		"long": {IssuerState{Online: true, NotAfter: now.Add(year), NextUpdate: now.Add(time.Hour), Entries: 9000, WholeUpTo: 10_000},
			finding.Warning, "issuer.crl", "has 9000 entries, and with more than 10000 a revocation shows in it up to five minutes late"},
		"not long":    {IssuerState{Online: true, NotAfter: now.Add(year), NextUpdate: now.Add(time.Hour), Entries: 8999, WholeUpTo: 10_000}, finding.OK, "issuer.crl", "fresh"},
		"not whole":   {IssuerState{Online: true, NotAfter: now.Add(year), NextUpdate: now.Add(time.Hour)}, finding.OK, "issuer.crl", "fresh"},
		"expired":     {IssuerState{Online: true, NotAfter: now.Add(-time.Hour), NextUpdate: now.Add(time.Hour)}, finding.Error, "issuer", "expired"},
		"ends":        {IssuerState{Online: true, NotAfter: now.Add(100 * 24 * time.Hour), NextUpdate: now.Add(time.Hour)}, finding.Warning, "issuer", "ends on"},
		"pending":     {IssuerState{Online: true, Pending: true}, finding.Warning, "issuer", "waits"},
		"retired old": {IssuerState{Online: true, Retired: true, NotAfter: now.Add(-year), NextUpdate: now.Add(time.Hour)}, finding.OK, "issuer.crl", "fresh"},
	} {
		t.Run(name, func(t *testing.T) {
			var all []finding.Finding
			n.Issuer = func(context.Context) ([]IssuerState, error) { return []IssuerState{c.state}, nil }
			if err := n.issuers(t.Context(), now, func(f finding.Finding) { all = append(all, f) }); err != nil {
				t.Fatal(err)
			}
			want(t, all, c.level, c.check, c.text)
		})
	}
}

// TestTrustThatEnds warns of what pools trust and nobody renews, with the command that replaces it.
func TestTrustThatEnds(t *testing.T) {
	now := time.Now()
	look := func(ending ...trust.Ending) []finding.Finding {
		var all []finding.Finding
		n := &Node{Trust: func(_ context.Context, before time.Time) ([]trust.Ending, error) {
			if before.Sub(now) < 29*24*time.Hour {
				t.Errorf("asked for what ends before %v", before)
			}
			return ending, nil
		}}
		if err := n.trust(t.Context(), now, func(f finding.Finding) { all = append(all, f) }); err != nil {
			t.Fatal(err)
		}
		return all
	}
	if all := look(); len(all) != 1 || all[0].Level != finding.OK {
		t.Errorf("nothing ends: %v", all)
	}
	for hint, e := range map[string]trust.Ending{
		"pool trust add lab":    {Pool: "lab", Entry: "e1", Kind: "anchor", Subject: "CN=Corp", Ends: now},
		"pool trust crl lab e1": {Pool: "lab", Entry: "e1", Kind: "anchor", Subject: "CN=Corp", Ends: now, CRL: true},
		"rotate-issuer":         {Pool: "lab", Entry: "e1", Kind: "issuer", Subject: "CN=Corp", Ends: now, Issuer: "lab"},
	} {
		all := look(e)
		if len(all) != 1 || all[0].Level != finding.Warning || !strings.Contains(all[0].Hint, hint) || !strings.Contains(all[0].Message, "CN=Corp") {
			t.Errorf("%s: %+v", hint, all)
		}
	}
}
