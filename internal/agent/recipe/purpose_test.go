package recipe_test

import (
	"slices"
	"strings"
	"testing"

	"chancery/internal/agent/recipe"
)

const pinning = `
name: pinning
title: a consumer whose peers pin it
about: a test
parameters:
  - {name: pinned, type: bool, default: "false", about: "peers pin each other"}
  - {name: purpose, type: name, about: "of the trust set"}
certificates:
  - profile: server
    key: [{algorithm: ecdsa-p256}]
    names: ["dns:${host.names}"]
    usages: [serverAuth]
    announce: "${param.purpose|general}"
    announce_when: param.pinned
trust:
  purpose: "${param.purpose|}"
files:
  - {path: /etc/ssl/a.key, content: [key], mode: "0600"}
  - {path: /etc/ssl/a.pem, content: [path]}
  - {path: /etc/ssl/ca.pem, when: param.pinned, content: [pinned]}
  - {path: /etc/ssl/ca.pem, when: not param.pinned, content: [anchors]}
`

func TestPurposeAndAnnouncementFollowTheParameters(t *testing.T) {
	r, err := recipe.Parse([]byte(pinning), "pinning.yaml")
	if err != nil {
		t.Fatal(err)
	}
	host := recipe.Host{Name: "a.example", DNS: []string{"a.example"}, Authority: "root"}
	for _, c := range []struct {
		parameters                map[string]string
		purpose, announce, pinned string
	}{
		{nil, "", "", ""},
		{map[string]string{"purpose": "peers"}, "peers", "", ""},
		{map[string]string{"purpose": "general"}, "", "", ""},
		{map[string]string{"pinned": "true"}, "", "general", "general"},
		{map[string]string{"pinned": "true", "purpose": "peers"}, "peers", "peers", "peers"},
	} {
		plan, err := r.Resolve(host, c.parameters, nil)
		if err != nil {
			t.Errorf("%v: %v", c.parameters, err)
			continue
		}
		if plan.Trust.Purpose != c.purpose || plan.Certificates[0].Announce != c.announce {
			t.Errorf("%v: purpose %q, announced under %q", c.parameters, plan.Trust.Purpose, plan.Certificates[0].Announce)
		}
		// The authority knows the same of it without the host.
		var wanted []string
		if c.announce != "" {
			wanted = []string{c.announce}
		}
		if got := r.Announces(c.parameters); !slices.Equal(got, wanted) {
			t.Errorf("%v: the authority thinks that it is announced under %q", c.parameters, got)
		}
		if got := r.Pins(c.parameters); got != c.pinned {
			t.Errorf("%v: the authority thinks that it pins %q", c.parameters, got)
		}
	}
	for _, purpose := range []string{"Peers", "a b", "-x", strings.Repeat("a", 33), "a.b"} {
		if _, err := r.Resolve(host, map[string]string{"pinned": "true", "purpose": purpose}, nil); err == nil {
			t.Errorf("purpose %q passes", purpose)
		}
	}
}
