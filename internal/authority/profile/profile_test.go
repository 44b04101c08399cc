package profile

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// TestBuiltinsPassZlint runs zlint over a sample of every built-in profile, for each kind of key.
func TestBuiltinsPassZlint(t *testing.T) {
	names := cert.BuiltinProfiles()
	for _, want := range []string{"server", "client", "peer", "ocsp-responder", "identity", "ca"} {
		if !slices.Contains(names, want) {
			t.Errorf("there is no built-in profile %q", want)
		}
	}
	count := 0
	for _, name := range names {
		p, err := cert.BuiltinProfile(name)
		if err != nil {
			t.Fatal(err)
		}
		samples, err := Samples(p, time.Now())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, s := range samples {
			count++
			for _, f := range s.Findings {
				if f.Warning {
					t.Logf("%s, %s: warned of %s: %s", name, s.Algorithm, f.Lint, f.Text)
					continue
				}
				t.Errorf("%s, %s: %s (%s): %s", name, s.Algorithm, f.Lint, f.Source, f.Text)
			}
			text, err := s.Text()
			if err != nil || !strings.Contains(text, "X.509 Certificate Information:") {
				t.Errorf("%s prints as %q, %v", name, text, err)
			}
		}
	}
	if count < 12 {
		t.Fatalf("%d samples were linted; at least 12 were expected", count)
	}
}

func admin() access.Principal {
	return access.Principal{ID: "a1", Name: "alice", Kind: access.KindOperator, Roles: []access.Role{access.Admin}}
}

func newStore(t *testing.T, d *db.DB) *Store {
	t.Helper()
	log, err := audit.New(d, "n1")
	if err != nil {
		t.Fatal(err)
	}
	return New(d, log)
}

const webYAML = `name: web
names:
  required: true
  rules:
    - roles: [host]
      dns: ["${host.names}"]
      ip: ["10.0.0.0/8"]
    - roles: [officer]
      dns: ["*.web.example.com"]
      wildcard: ["web.example.com"]
      uri: ["spiffe://example.com/*"]
      email: ["*@example.com"]
usage:
  key_usage: [digitalSignature]
  extended: [serverAuth]
validity:
  default: 30d
approval:
  automatic: [host]
  two_person: true
`

func TestVersions(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		ctx := context.Background()
		s := newStore(t, d)
		v, samples, err := s.Save(ctx, admin(), []byte(webYAML), 0, once.Call{})
		if err != nil || v.Number != 1 || len(samples) != 3 {
			t.Fatalf("save: %+v, %d samples, %v", v, len(samples), err)
		}
		if again, _, err := s.Save(ctx, admin(), []byte(webYAML), 0, once.Call{}); err != nil || again.Number != 1 {
			t.Errorf("the same document again: %+v, %v", again, err)
		}
		longer := strings.Replace(webYAML, "30d", "60d", 1)
		if _, _, err := s.Save(ctx, admin(), []byte(longer), 0, once.Call{}); !fault.Is(err, fault.Conflict) {
			t.Errorf("a change from an old version: %v", err)
		}
		if v, _, err = s.Save(ctx, admin(), []byte(longer), 1, once.Call{}); err != nil || v.Number != 2 {
			t.Fatalf("save again: %+v, %v", v, err)
		}
		if v, err = s.Current(ctx, "web"); err != nil || v.Number != 2 || v.Validity.Default.String() != "60d" {
			t.Errorf("current: %+v, %v", v, err)
		}
		if v, err = s.Load(ctx, "web", 1); err != nil || v.Document != webYAML || v.SavedBy != "operator:alice" {
			t.Errorf("version 1: %+v, %v", v, err)
		}
		if v, err = s.Retire(ctx, admin(), "web", once.Call{}); err != nil || v.Number != 3 {
			t.Fatalf("retire: %+v, %v", v, err)
		}
		if v, err = s.Retire(ctx, admin(), "web", once.Call{}); err != nil || v.Number != 3 || !v.Retired {
			t.Errorf("retired again: %+v, %v", v, err)
		}
		if _, err := s.Current(ctx, "web"); !fault.Is(err, fault.Conflict) {
			t.Errorf("a retired profile: %v", err)
		}
		if _, _, err := s.Save(ctx, admin(), []byte(longer), 3, once.Call{}); err != nil {
			t.Errorf("bring it back: %v", err)
		}
		history, err := s.History(ctx, "web")
		if err != nil || len(history) != 4 || history[0].Number != 4 || history[0].Retired || !history[1].Retired {
			t.Errorf("history: %d versions, %v", len(history), err)
		}
		if _, err := s.Current(ctx, "nothing"); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "server") {
			t.Errorf("no such profile: %v", err)
		}
	})
}

// TestBuiltinCanBeReplaced saves a profile under a built-in's name: certificates then name version 1, and version 0 stays
// readable.
func TestBuiltinCanBeReplaced(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		ctx := context.Background()
		s := newStore(t, d)
		if v, err := s.Current(ctx, "server"); err != nil || v.Number != 0 {
			t.Fatalf("built in: %+v, %v", v, err)
		}
		if _, _, err := s.Save(ctx, admin(), []byte(strings.Replace(webYAML, "name: web", "name: server", 1)), 0, once.Call{}); err != nil {
			t.Fatal(err)
		}
		if v, err := s.Current(ctx, "server"); err != nil || v.Number != 1 || v.Validity.Default.String() != "30d" {
			t.Errorf("replaced: %+v, %v", v, err)
		}
		if v, samples, err := s.Show(ctx, "server", 0); err != nil || v.Validity.Default.String() != "90d" || len(samples) == 0 {
			t.Errorf("version 0: %+v, %v", v, err)
		}
		all, err := s.List(ctx)
		if err != nil || len(all) != len(cert.BuiltinProfiles()) {
			t.Errorf("list: %d, %v", len(all), err)
		}
	})
}

// TestSaveRefuses names what is wrong, and stores nothing.
func TestSaveRefuses(t *testing.T) {
	d := pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)})
	ctx := context.Background()
	s := newStore(t, d)
	for name, c := range map[string]struct {
		document, says string
		kind           fault.Kind
	}{
		"zlint": {
			document: `name: bad
names: {common_name: subject, rules: [{subject: {CN: ["*"]}}]}
usage: {key_usage: [keyCertSign, cRLSign]}
validity: {default: 30d}
ca: {path_length: 0}
extensions: {subject_key_id: none}
lints: {off: [subject-key-id]}
`, kind: fault.Invalid, says: "e_ext_subject_key_identifier_missing_ca"},
		"unknown field": {document: strings.Replace(webYAML, "required", "requird", 1), kind: fault.Invalid, says: "requird"},
		"bad usage":     {document: strings.Replace(webYAML, "serverAuth", "servAuth", 1), kind: fault.Invalid, says: "servAuth"},
	} {
		_, _, err := s.Save(ctx, admin(), []byte(c.document), 0, once.Call{})
		if !fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.History(ctx, "bad"); !fault.Is(err, fault.NotFound) {
		t.Errorf("the refused profile is stored: %v", err)
	}
	host := access.Principal{ID: "h1", Name: "h1", Kind: access.KindHost, Roles: []access.Role{access.Host}}
	if _, _, err := s.Save(ctx, host, []byte(webYAML), 0, once.Call{}); !fault.Is(err, fault.Denied) {
		t.Errorf("a host saves a profile: %v", err)
	}
	if history, err := s.History(ctx, "web"); !fault.Is(err, fault.NotFound) {
		t.Errorf("something was stored: %v, %v", history, err)
	}
}

// TestSaveAtOnce has several people save a change of one version: one of them succeeds.
func TestSaveAtOnce(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		s := newStore(t, d)
		var wg sync.WaitGroup
		saved := make([]bool, 8)
		for i := range saved {
			wg.Go(func() {
				document := strings.Replace(webYAML, "30d", fmt.Sprintf("%dd", 10+i), 1)
				document = strings.Replace(document, "usage:", "key: {algorithms: [ecdsa-p256]}\nusage:", 1)
				_, _, err := s.Save(context.Background(), admin(), []byte(document), 0, once.Call{})
				if saved[i] = err == nil; err != nil && !fault.Is(err, fault.Conflict) {
					t.Errorf("save %d: %v", i, err)
				}
			})
		}
		wg.Wait()
		n := 0
		for _, ok := range saved {
			if ok {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%d saves of one version passed", n)
		}
	})
}

// TestZLintOff: what a consumer insists on is saved when the profile says so, and is shown as a warning; nothing else passes.
func TestZLintOff(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		s := newStore(t, d)
		odd := strings.NewReplacer("name: web", "name: odd", "[digitalSignature]", "[digitalSignature, keyEncipherment]", "[serverAuth]", "[clientAuth]").
			Replace(webYAML)
		const lint = "e_key_usage_and_extended_key_usage_inconsistent"
		if _, _, err := s.Save(t.Context(), admin(), []byte(odd), 0, once.Call{}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), lint) {
			t.Fatalf("saved without zlint_off: %v", err)
		}
		_, samples, err := s.Save(t.Context(), admin(), []byte(odd+"lints: {zlint_off: ["+lint+"]}\n"), 0, once.Call{})
		if err != nil {
			t.Fatal(err)
		}
		shown := 0
		for _, sample := range samples {
			for _, f := range sample.Findings {
				if f.Lint == lint && f.Warning && strings.Contains(f.Text, "turned it off") {
					shown++
				}
			}
		}
		if shown == 0 {
			t.Error("the error that was turned off is not shown")
		}
	})
}
