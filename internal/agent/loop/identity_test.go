package loop

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"chancery/client"
)

// TestIdentityThatEndedLongAgoSaysWhatHelps: a host that has joined gets no other token, but can be replaced.
func TestIdentityThatEndedLongAgoSaysWhatHelps(t *testing.T) {
	now := time.Now()
	leaf := &x509.Certificate{NotBefore: now.Add(-90 * 24 * time.Hour), NotAfter: now.Add(-31 * 24 * time.Hour)}
	a := &Agent{id: &identity{Host: "web1", pair: tls.Certificate{Leaf: leaf}}, tries: attempts{}}
	err := a.renewIdentity(t.Context(), 0, now)
	if err == nil || !strings.Contains(err.Error(), "chancery host replace web1") || strings.Contains(err.Error(), "host token") {
		t.Errorf("it says %v", err)
	}
}

// TestRefusedIsNotUnreached: only an authority that was reached and refused the host may be asked for an identity.
func TestRefusedIsNotUnreached(t *testing.T) {
	a := &Agent{api: &client.Client{}}
	for _, c := range []struct {
		gone error
		want bool
	}{
		{nil, false}, {errors.New("dial tcp"), false}, {&client.Problem{Type: "urn:chancery:problem:unauthenticated"}, true},
	} {
		a.setGone(c.gone)
		if a.refused() != c.want {
			t.Errorf("%v: refused is %t", c.gone, !c.want)
		}
	}
}
