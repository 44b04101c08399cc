package doctor

import (
	"context"
	"strings"
	"testing"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/fleet/trust"
	"chancery/internal/upkeep/finding"
)

// TestTwinsAreNamed: each kind of two issuers that are taken for each other is told by its own words, with both names and what to do.
func TestTwinsAreNamed(t *testing.T) {
	one, other := &ca.Issuer{Name: "one", Pool: "web", State: ca.IssuerActive}, &ca.Issuer{Name: "other", Pool: "web", State: ca.IssuerRetired}
	for _, c := range []struct {
		twin  ca.Twin
		level finding.Level
		says  string
	}{
		{ca.Twin{One: one, Other: other, Key: true, Subject: true, BothSignLists: true, Compromised: true}, finding.Error, "revoked as compromised: who has it"},
		{ca.Twin{One: other, Other: other, Key: true, Compromised: true}, finding.Warning, "neither issues"},
		{ca.Twin{One: one, Other: other, Key: true, Subject: true, BothSignLists: true}, finding.Error, "contradict"},
		{ca.Twin{One: one, Other: other, Key: true, Subject: true}, finding.Warning, "one to relying parties"},
		{ca.Twin{One: one, Other: other, Key: true}, finding.Warning, "have one key: who has"},
		{ca.Twin{One: one, Other: other, Subject: true}, finding.Warning, "the first of two equal subjects"},
	} {
		var told []finding.Finding
		n := &Node{Twins: func(context.Context) ([]ca.Twin, error) { return []ca.Twin{c.twin}, nil }}
		if err := n.twins(t.Context(), func(f finding.Finding) { told = append(told, f) }); err != nil || len(told) != 1 {
			t.Fatalf("%+v: %v, %v", c.twin, told, err)
		}
		f := told[0]
		if f.Level != c.level || !strings.Contains(f.Message, c.says) || !strings.Contains(f.Message, `"`+c.twin.Other.Name+`" (retired)`) || f.Object != c.twin.One.Name || f.Hint == "" {
			t.Errorf("%+v: %+v", c.twin, f)
		}
	}
}

// TestWhoPresentsWhatAnIssuerHad: the placements are named, as far as they are few, and a certificate that is revoked is an error.
func TestWhoPresentsWhatAnIssuerHad(t *testing.T) {
	end := time.Date(2031, 2, 3, 0, 0, 0, 0, time.UTC)
	var all []Renewed
	look := func() (told []finding.Finding) {
		t.Helper()
		n := &Node{Renewed: func(context.Context, time.Time) ([]Renewed, error) { return all, nil }}
		if err := n.presented(t.Context(), time.Now(), func(f finding.Finding) { told = append(told, f) }); err != nil {
			t.Fatal(err)
		}
		return told
	}
	if told := look(); len(told) != 1 || told[0].Level != finding.OK {
		t.Errorf("where there is none: %+v", told)
	}
	by := []trust.Presented{{Host: "web1", Placement: "nginx"}, {Host: "kvm1", Placement: "libvirt-server"}}
	all = []Renewed{{Issuer: "sub", Serial: "0a", NotAfter: end, Placements: 2, Hosts: 2, By: by}, {Issuer: "sub", Serial: "0b", NotAfter: end, Revoked: true, Placements: 30, Hosts: 9, By: by}}
	told := look()
	if len(told) != 2 {
		t.Fatalf("%+v", told)
	}
	if f := told[0]; f.Level != finding.Warning || f.Seen != "web1/nginx, kvm1/libvirt-server" || !strings.Contains(f.Message, "2 placements on 2 hosts") ||
		!strings.Contains(f.Message, "ends on 2031-02-03") || f.Hint != "chancery doctor web1" || f.Do == "" {
		t.Errorf("%+v", f)
	}
	if f := told[1]; f.Level != finding.Error || !strings.HasSuffix(f.Seen, "and 28 more") || !strings.Contains(f.Message, "revoked") {
		t.Errorf("%+v", f)
	}
}
