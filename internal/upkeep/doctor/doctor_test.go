package doctor

import (
	"context"
	"strings"
	"testing"
	"time"

	"chancery/internal/upkeep/finding"
)

func collect(t *testing.T, seq finding.Seq) []finding.Finding {
	t.Helper()
	var all []finding.Finding
	for f, err := range seq {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, f)
	}
	return all
}

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
		"fine":        {IssuerState{Online: true, NotAfter: now.Add(year), NextUpdate: now.Add(time.Hour)}, finding.OK, "issuer.crl", "fresh"},
		"stale":       {IssuerState{Online: true, NotAfter: now.Add(year), NextUpdate: now.Add(-time.Hour)}, finding.Error, "issuer.crl", "past nextUpdate"},
		"none":        {IssuerState{Online: true, NotAfter: now.Add(year)}, finding.Error, "issuer.crl", "no CRL"},
		"offline 59":  {IssuerState{NotAfter: now.Add(year), NextUpdate: now.Add(59 * 24 * time.Hour)}, finding.Warning, "issuer.crl", "offline root"},
		"offline 61":  {IssuerState{NotAfter: now.Add(year), NextUpdate: now.Add(61 * 24 * time.Hour)}, finding.OK, "issuer.crl", "fresh"},
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
