package datadir

import (
	"strings"
	"testing"
)

func TestListenersThatNobodyReaches(t *testing.T) {
	for _, one := range []struct {
		address, api, public string
		says                 []string
	}{
		{"https://node2.example:8443", "", "", []string{"listen.api is 127.0.0.1:8443, and its address is https://node2.example:8443", "reach CRLs and OCSP only if"}},
		{"https://node2.example:8443", "192.0.2.2:8443", "[::1]:8080", []string{"listen.public is [::1]:8080"}},
		{"https://node2.example:8443", ":8443", "localhost:80", []string{"listen.public is localhost:80"}},
		{"https://[2001:db8::2]:8443", "[::]:8443", "0.0.0.0:80", nil},
		{"https://localhost:8443", "", "", nil},
		{"https://127.0.0.2:8443", "127.0.0.2:8443", "127.0.0.2:8080", nil},
	} {
		c := Config{Name: "n", Address: one.address, Listen: Listen{API: one.api, Public: one.public}}
		got := c.Filled().Unreached()
		if len(got) != len(one.says) {
			t.Errorf("%+v: %q", one, got)
			continue
		}
		for i, says := range one.says {
			if !strings.Contains(got[i], says) {
				t.Errorf("%+v: %q", one, got[i])
			}
		}
	}
}
