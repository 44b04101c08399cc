package api_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"chancery/client"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/surface/api"
)

// operation is one operation of the OpenAPI document.
type operation struct {
	Stranger, Secured bool
	ID, Method, Path  string
	HasBody           bool
	Streams           bool
	Roles             []string
}

// operations reads them from the document, sorted by ID.
func operations(t testing.TB, s *api.Server) []operation {
	t.Helper()
	var doc struct {
		Paths map[string]map[string]struct {
			OperationID string          `json:"operationId"`
			RequestBody json.RawMessage `json:"requestBody"`
			Roles       []string        `json:"x-roles"`
			Action      string          `json:"x-action"`
			Security    json.RawMessage `json:"security"`
		} `json:"paths"`
	}
	must(t, json.Unmarshal(s.Document(), &doc))
	var all []operation
	for path, methods := range doc.Paths {
		for method, o := range methods {
			all = append(all, operation{
				ID: o.OperationID, Method: strings.ToUpper(method), Path: path, HasBody: o.RequestBody != nil, Roles: o.Roles,
				Stranger: o.Action == "stranger", Secured: o.Security != nil,
			})
		}
	}
	slices.SortFunc(all, func(a, b operation) int { return strings.Compare(a.ID, b.ID) })
	return all
}

var pathParameter = regexp.MustCompile(`\{[^}]+\}`)

// fill puts a value in the place of each path parameter.
func (o operation) fill(value string) string {
	return pathParameter.ReplaceAllLiteralString(o.Path, url.PathEscape(value))
}

// FuzzAPIBodies throws bodies at every operation that takes one, through the whole handler. Whatever comes in, the answer is
// JSON with a status that fits, and never "internal error".
func FuzzAPIBodies(f *testing.F) {
	a := newAuthority(f, pkitest.Open(f, db.Options{URL: pkitest.URL(f, db.SQLite)}))
	var targets []operation
	for _, o := range operations(f, a.api) {
		if o.HasBody {
			targets = append(targets, o)
		}
	}
	if len(targets) < 4 {
		f.Fatalf("%d operations take a body; the fuzzer would prove little", len(targets))
	}
	for i := range targets {
		for _, seed := range bodySeeds {
			f.Add(byte(i), "name", []byte(seed))
		}
	}
	f.Fuzz(func(t *testing.T, which byte, name string, body []byte) {
		o := targets[int(which)%len(targets)]
		r := httptest.NewRequest(o.Method, "http://node"+strings.ReplaceAll(o.fill(name), "//", "/x/"), bytes.NewReader(body))
		r.Header.Set("Authorization", "Bearer "+a.people[access.Admin].token)
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		a.api.ServeHTTP(w, r)
		if w.Code == http.StatusInternalServerError || w.Code == 0 {
			t.Fatalf("%s %s: %d %s\n%s", o.Method, o.Path, w.Code, w.Body, a.log)
		}
		kind, _, _ := strings.Cut(w.Header().Get("Content-Type"), ";")
		switch kind {
		case "application/json", "application/problem+json":
			if !json.Valid(w.Body.Bytes()) {
				t.Fatalf("%s %s: not JSON: %s", o.Method, o.Path, w.Body)
			}
			var p client.Problem
			if w.Code >= 400 && (json.Unmarshal(w.Body.Bytes(), &p) != nil || p.Kind() == "" || p.Status != w.Code) {
				t.Fatalf("%s %s: no problem: %s", o.Method, o.Path, w.Body)
			}
		}
	})
}

// bodySeeds are bodies of every sort of operation; each is thrown at all.
var bodySeeds = []string{
	``, `{}`, `[]`, `null`, `{"name":"x","roles":["operator"]}`, `{"disabled":true}`, `{"roles":[]}`, `{"validity":"1h","label":"x"}`,
	`{"validity":"-1d"}`, `{"validity":"99999999d"}`, `{"set":[{"path":"crl.validity","value":"10d"}]}`, `{"set":[{"path":"authority","value":"x"}]}`,
	`{"set":[]}`, `{"csr":"-----BEGIN CERTIFICATE REQUEST-----\nMAA=\n-----END CERTIFICATE REQUEST-----\n","profile":"server"}`,
	`{"public_key":"-----BEGIN PUBLIC KEY-----\nMAA=\n-----END PUBLIC KEY-----\n","profile":"server","names":{"san":["dns:a.test"]}}`,
	`{"template":"cn = x\ntls_www_server\n","csr":"x"}`, `{"profile":"server","names":{"subject":"CN=a\u0000b","san":["ip:300.1.1.1","uri:\ud800"]}}`,
	`{"reason":"keyCompromise","invalidity_date":"2030-01-01T00:00:00Z"}`, `{"reason":"certificateHold"}`, `{"yaml":"name: x\n"}`, `{"yaml":"&a [*a,*a]"}`,
	`{"crl":"-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n"}`, `{"certificate":"x","chain":""}`, `{"root":"x","issuer":"y","crl":"z"}`,
	`{"name":"i","kind":"root","subject":"CN=i","validity":"10y"}`, `{"name":"p","online":true}`, `{"checkpoints":["x"]}`, `{"assignee":"the-officer"}`,
	`{"dry_run":true,"profile":"server","csr":"x"}`, `{"scope":"0"}`, `{"not_before":"2030-01-01T00:00:00Z","not_after":"1970-01-01T00:00:00Z"}`,
}
