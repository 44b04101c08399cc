package client

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestJoinTokenSurvivesItsText(t *testing.T) {
	want := &JoinToken{Address: "https://pki.example.com:8443", Fingerprint: Fingerprint([]byte("root")), Secret: "s3cret"}
	got, err := ParseJoinToken(want.String())
	if err != nil || got.Address != want.Address || got.Secret != want.Secret || !bytes.Equal(got.Fingerprint, want.Fingerprint) {
		t.Fatalf("%+v, %v", got, err)
	}
	for name, text := range map[string]string{
		"empty": "", "another text": "hello", "no base64": joinTokenPrefix + "%%", "no JSON": joinTokenPrefix + "AAAA",
		"cut short": want.String()[:40], "plain http": (&JoinToken{Address: "http://x", Fingerprint: want.Fingerprint, Secret: "s"}).String(),
		"short fingerprint": (&JoinToken{Address: "https://x", Fingerprint: []byte{1}, Secret: "s"}).String(),
		"no secret":         (&JoinToken{Address: "https://x", Fingerprint: want.Fingerprint}).String(),
	} {
		if _, err := ParseJoinToken(text); err == nil {
			t.Errorf("%s: accepted", name)
		} else if strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: the error repeats the secret", name)
		}
	}
}

// TestCloneToken: a node's token and a host's are not taken for each other.
func TestCloneToken(t *testing.T) {
	want := &CloneToken{Address: "https://pki.example.com:8443", Fingerprint: Fingerprint([]byte("root")), Secret: "s3cret"}
	got, err := ParseCloneToken(want.String())
	if err != nil || got.Address != want.Address || got.Secret != want.Secret || !bytes.Equal(got.Fingerprint, want.Fingerprint) {
		t.Fatalf("%+v, %v", got, err)
	}
	if _, err := ParseJoinToken(want.String()); err == nil {
		t.Error("a host joins with a node's token")
	}
	for name, text := range map[string]string{
		"empty": "", "a host's": (*JoinToken)(want).String(), "cut short": want.String()[:40], "no base64": cloneTokenPrefix + "%%",
	} {
		if _, err := ParseCloneToken(text); err == nil || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v", name, err)
		}
	}
	spki := []byte{1, 2, 3}
	in := CloneJoin{Name: "n2", Address: "https://n2.test", PublicKey: "age1x", Names: []string{"dns:a", "dns:b"}}
	plain := CloneFingerprint(in, spki, nil)
	for what, other := range map[string]CloneJoin{
		"name":    {Name: "n3", Address: in.Address, PublicKey: in.PublicKey, Names: in.Names},
		"address": {Name: in.Name, Address: "https://n3.test", PublicKey: in.PublicKey, Names: in.Names},
		"key":     {Name: in.Name, Address: in.Address, PublicKey: "age1y", Names: in.Names},
		"names":   {Name: in.Name, Address: in.Address, PublicKey: in.PublicKey, Names: []string{"dns:a"}},
		"a comma": {Name: in.Name, Address: in.Address, PublicKey: in.PublicKey, Names: []string{"dns:a,5:dns:b"}},
	} {
		if CloneFingerprint(other, spki, nil) == plain {
			t.Errorf("another %s has the same fingerprint", what)
		}
	}
	if len(plain) != 64 || plain == CloneFingerprint(in, nil, nil) || plain == CloneFingerprint(in, nil, spki) || plain == CloneFingerprint(in, spki, spki) ||
		PlainFingerprint(strings.ToUpper(plain[:8])+" "+plain[8:16]+":-\n"+plain[16:]) != plain {
		t.Errorf("the fingerprint is %s", plain)
	}
}

func TestJoinRootsBelievesTheFingerprintOnly(t *testing.T) {
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	root := s.Certificate()
	s.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != Prefix+"/join/roots" || r.Header.Get("Authorization") != "" {
			t.Errorf("asked for %s with %q", r.URL.Path, r.Header.Get("Authorization"))
		}
		pem.Encode(w, &pem.Block{Type: "CERTIFICATE", Bytes: []byte("another")})
		pem.Encode(w, &pem.Block{Type: "CERTIFICATE", Bytes: root.Raw})
	})
	text, err := JoinRoots(t.Context(), s.URL, Fingerprint(root.Raw))
	if err != nil || !x509.NewCertPool().AppendCertsFromPEM([]byte(text)) || strings.Count(text, "BEGIN") != 1 {
		t.Fatalf("%q, %v", text, err)
	}
	if _, err := JoinRoots(t.Context(), s.URL, Fingerprint([]byte("not shown"))); err == nil {
		t.Fatal("an authority that does not show the root was believed")
	}
}

func TestDesiredTellsUnchangedFromChanged(t *testing.T) {
	c := node(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("If-None-Match") == `"e2"` {
			if r.URL.Query().Get("wait") != "30" {
				t.Errorf("wait %q", r.URL.RawQuery)
			}
			w.WriteHeader(http.StatusNotModified)
			return
		}
		json.NewEncoder(w).Encode(Desired{ETag: "e2", Host: "h"})
	})
	first, err := c.Desired(t.Context(), "e1", 0)
	if err != nil || first == nil || first.ETag != "e2" {
		t.Fatalf("%+v, %v", first, err)
	}
	if second, err := c.Desired(t.Context(), first.ETag, 30*time.Second); second != nil || err != nil {
		t.Fatalf("%+v, %v", second, err)
	}
}

func TestClockIsToldTheNodesTime(t *testing.T) {
	at := time.Date(2026, 11, 21, 20, 0, 0, 0, time.UTC)
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", at.Format(http.TimeFormat))
		w.Write([]byte("{}"))
	}))
	defer s.Close()
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	var told time.Time
	c, err := New(Options{Address: s.URL, Roots: roots, Clock: func(node time.Time) { told = node }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Status(t.Context()); err != nil || !told.Equal(at) {
		t.Fatalf("told %s, %v", told, err)
	}
}
