package api_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"chancery/client"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// TestPlainCallsAreAnsweredAsOthers makes each call twice, the second time with a member that says nothing, so that it is no
// plain one: status, header and body are the same.
func TestPlainCallsAreAnsweredAsOthers(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}))
	for name, c := range map[string]struct {
		who     access.Role
		order   map[string]any
		headers []string
		status  int
	}{
		"issued":          {access.Operator, map[string]any{"profile": "server", "csr": csrPEM(t, "", "a.test")}, nil, 201},
		"by name":         {access.Admin, map[string]any{"profile": "client", "pool": "default", "csr": csrPEM(t, "someone")}, []string{"Accept", "*/*"}, 201},
		"unknown profile": {access.Operator, map[string]any{"profile": "nothing", "csr": csrPEM(t, "", "a.test")}, nil, 404},
		"unknown issuer":  {access.Operator, map[string]any{"profile": "server", "issuer": "x", "csr": csrPEM(t, "", "a.test")}, nil, 404},
		"no request":      {access.Operator, map[string]any{"profile": "server", "csr": "nothing"}, nil, 422},
		"may not":         {access.Auditor, map[string]any{"profile": "server", "csr": csrPEM(t, "", "a.test")}, nil, 403},
		"too long":        {access.Operator, map[string]any{"profile": strings.Repeat("p", 256)}, nil, 422},
		"no member":       {access.Operator, map[string]any{"profil": "server"}, nil, 422},
		"accepts other":   {access.Operator, map[string]any{"profile": "server", "csr": csrPEM(t, "", "b.test")}, []string{"Accept", "application/json;q=0.5"}, 201},
		"bad key":         {access.Operator, map[string]any{"profile": "server", "csr": csrPEM(t, "", "b.test")}, []string{"Idempotency-Key", "a b"}, 422},
	} {
		var answers [2]struct {
			status int
			header http.Header
			body   string
		}
		for i := range answers {
			if i == 1 {
				c.order["certtool_compat"] = false
			}
			text, err := json.Marshal(c.order)
			must(t, err)
			headers := append([]string{"Idempotency-Key", strings.ReplaceAll(name, " ", "-")}, c.headers...)
			status, header, body := a.request("POST", client.Prefix+"/certificates", a.people[c.who].token, string(text), headers...)
			if i == 0 && c.status == 201 && name != "accepts other" && header.Get("Content-Length") == "" {
				t.Errorf("%s: it was not answered as a plain call", name)
			}
			id := header.Get("X-Request-Id")
			for _, own := range []string{"X-Request-Id", "Date", "Content-Length"} {
				header.Del(own)
			}
			answers[i].status, answers[i].header, answers[i].body = status, header, strings.ReplaceAll(string(body), id, "ID")
		}
		plain, other := answers[0], answers[1]
		if plain.status != c.status {
			t.Errorf("%s: %d, want %d: %s", name, plain.status, c.status, plain.body)
		}
		if plain.status != other.status || plain.body != other.body && !jsonEqual(plain.body, other.body) {
			t.Errorf("%s: %d %s\nand by huma: %d %s", name, plain.status, plain.body, other.status, other.body)
		}
		for key := range other.header {
			if plain.header.Get(key) != other.header.Get(key) {
				t.Errorf("%s: %s is %q, and by huma %q", name, key, plain.header.Get(key), other.header.Get(key))
			}
		}
		if len(plain.header) != len(other.header) {
			t.Errorf("%s: headers %v, and by huma %v", name, plain.header, other.header)
		}
	}
}

// jsonEqual compares problems, whose members huma writes in another order.
func jsonEqual(a, b string) bool {
	var x, y map[string]any
	if json.Unmarshal([]byte(a), &x) != nil || json.Unmarshal([]byte(b), &y) != nil || len(x) != len(y) {
		return false
	}
	for k := range x {
		p, _ := json.Marshal(x[k])
		q, _ := json.Marshal(y[k])
		if string(p) != string(q) {
			return false
		}
	}
	return true
}
