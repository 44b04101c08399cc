package api_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

func newSQLite(t *testing.T) *authority {
	t.Helper()
	return newAuthority(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}))
}

func TestBadInputIsRefusedByName(t *testing.T) {
	t.Parallel()
	a := newSQLite(t)
	admin := a.people[access.Admin].token
	for _, c := range []struct {
		name, method, path, body string
		status                   int
		kind, says               string
	}{
		{"no JSON", "POST", "/operators", "{garbage", 400, "invalid", "invalid character"},
		{"no object", "POST", "/operators", "[]", 422, "invalid", "object"},
		{"nothing", "POST", "/operators", "", 400, "invalid", "body"},
		{"unknown field", "POST", "/operators", `{"name":"x","roles":["admin"],"rolls":1}`, 422, "invalid", "unexpected property"},
		{"missing field", "POST", "/operators", `{"name":"x"}`, 422, "invalid", "roles"},
		{"wrong type", "POST", "/operators", `{"name":7,"roles":["admin"]}`, 422, "invalid", "string"},
		{"no such role", "POST", "/operators", `{"name":"x","roles":["root"]}`, 422, "invalid", "admin"},
		{"too long", "POST", "/operators", `{"name":"` + strings.Repeat("x", 300) + `","roles":["admin"]}`, 422, "invalid", "200"},
		{"10 MB", "POST", "/operators", `{"name":"` + strings.Repeat("x", 10<<20) + `","roles":["admin"]}`, 413, "too-large", "65536"},
		{"deep", "POST", "/operators", strings.Repeat("[", 30000), 400, "invalid", ""},
		{"unknown parameter", "GET", "/operators?nam=x", "", 422, "invalid", "unknown query parameter"},
		{"bad limit", "GET", "/operators?limit=x", "", 422, "invalid", "integer"},
		{"no path", "GET", "/nothing", "", 404, "not-found", "/nothing"},
		{"wrong method", "PUT", "/settings", "{}", 405, "invalid", "GET, PATCH"},
		{"bad time", "GET", "/audit?since=yesterday", "", 422, "invalid", "RFC 3339"},
		{"bad key", "GET", "/audit?after=zzz", "", 422, "invalid", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, header, body := a.request(c.method, client.Prefix+c.path, admin, c.body)
			p := problemOf(t, header, body)
			if status != c.status || p.Status != c.status || p.Kind() != c.kind || !strings.Contains(string(body), c.says) {
				t.Fatalf("%d %s", status, body)
			}
		})
	}
	if strings.Contains(a.log.String(), `"level":"ERROR"`) {
		t.Fatalf("bad input was logged as an error of ours: %s", a.log)
	}
}

func TestOtherBodiesThanJSONAreRefused(t *testing.T) {
	t.Parallel()
	a := newSQLite(t)
	status, header, body := a.request("POST", client.Prefix+"/operators", a.people[access.Admin].token, "<x/>", "Content-Type", "text/xml")
	if p := problemOf(t, header, body); status != 415 || p.Kind() != "invalid" {
		t.Fatalf("%d %s", status, body)
	}
}

func TestSecretsInWrongFieldsAreNotEchoed(t *testing.T) {
	t.Parallel()
	a := newSQLite(t)
	_, _, body := a.request("POST", client.Prefix+"/operators", a.people[access.Admin].token, `{"name":"x","roles":["admin"],"password":"hunter2"}`)
	if strings.Contains(string(body), "hunter2") || strings.Contains(a.log.String(), "hunter2") {
		t.Fatalf("answer %s, log %s", body, a.log)
	}
}

func TestSlowClientsAreCutOff(t *testing.T) {
	t.Parallel()
	a := makeAuthority(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}))
	a.wait(3*time.Second, time.Millisecond) // a handshake counts as the header does
	a.serve()
	dial := func() net.Conn {
		for end := time.Now().Add(2 * time.Minute); ; { // a busy machine may itself be too slow with a handshake
			conn, err := tls.Dial("tcp", a.server.Listener.Addr().String(), &tls.Config{RootCAs: a.roots(), ServerName: "example.com"})
			if err == nil {
				t.Cleanup(func() { conn.Close() })
				conn.SetDeadline(time.Now().Add(time.Minute))
				return conn
			}
			if time.Now().After(end) {
				t.Fatal(err)
			}
		}
	}
	// send sends what comes with a header, and reads the answer; once more where the connection ended before the header was there in time.
	send := func(text string, read func(io.Reader) (string, error)) (answer string, err error) {
		for range 20 {
			conn := dial()
			fmt.Fprint(conn, text)
			if answer, err = read(conn); answer != "" {
				break
			}
		}
		return answer, err
	}
	all := func(r io.Reader) (string, error) { text, err := io.ReadAll(r); return string(text), err }
	line := func(r io.Reader) (string, error) { return bufio.NewReader(r).ReadString('\n') }
	header := dial()
	fmt.Fprint(header, "GET /api/v1/caller HTTP/1.1\r\nHost: x\r\nX-Slow")
	if rest, err := all(header); err != nil || len(rest) > 0 && !strings.Contains(rest, "408") && !strings.Contains(rest, "400") {
		t.Fatalf("a header that never ends: %q, %v", rest, err)
	}
	known := fmt.Sprintf("Host: x\r\nAuthorization: Bearer %s\r\nContent-Length: 1000\r\n", a.people[access.Admin].token)
	said, err := send("POST /api/v1/operators HTTP/1.1\r\n"+known+"Content-Type: application/json\r\n\r\n{", line)
	if err != nil || !strings.Contains(said, "408") {
		t.Fatalf("a body that never comes, from an administrator: %q, %v", said, err)
	}
	said, err = send("GET /api/v1/caller HTTP/1.1\r\n"+known+"\r\n{", all)
	if err != nil || !strings.Contains(said, "422") {
		t.Fatalf("a body where none is taken: %q, %v", said, err)
	}
	// Nobody has said who calls: the answer comes before the body is waited for.
	said, err = send("POST /api/v1/operators HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{", line)
	if err != nil || !strings.Contains(said, "401") {
		t.Fatalf("a body that never comes, from a stranger: %q, %v", said, err)
	}
}

// TestForeignPagesAreRefused has a browser that holds a client certificate visit a page that makes it call.
func TestForeignPagesAreRefused(t *testing.T) {
	t.Parallel()
	a := newSQLite(t)
	for _, header := range [][]string{{"Sec-Fetch-Site", "cross-site"}, {"Origin", "https://evil.test"}} {
		status, h, body := a.request("POST", client.Prefix+"/backup", a.people[access.Admin].token, "", header...)
		if p := problemOf(t, h, body); status != 403 || p.Kind() != "denied" || !strings.Contains(p.Detail, "origin") {
			t.Errorf("%v: %d %s", header, status, body)
		}
	}
}

func TestLoopingClientsAreSentAway(t *testing.T) {
	t.Parallel()
	a := newSQLite(t)
	admin, looping, ctx := a.as(access.Admin), a.as(access.Operator), t.Context()
	_, err := admin.ChangeSettings(ctx, client.SettingsChange{Set: []client.Setting{
		{Path: "limits.operator_rate.per_second", Value: "0.01"}, {Path: "limits.operator_rate.burst", Value: "5"}}}, "")
	must(t, err)
	var limited *client.Problem
	for range 50 {
		if _, err := looping.Caller(ctx); err != nil {
			limited, _ = err.(*client.Problem)
			break
		}
	}
	if limited == nil || limited.Status != 429 || limited.RetryAfter <= 0 || limited.Kind() != "rate-limited" {
		t.Fatalf("got %+v", limited)
	}
	if _, err := a.as(access.Auditor).Caller(ctx); err != nil {
		t.Fatalf("another caller pays for it: %v", err)
	}
}

func TestStrangersAreSentAway(t *testing.T) {
	t.Parallel()
	a := newSQLite(t)
	a.api.FewGuesses()
	seen := map[int]int{}
	for range 300 {
		r, w := httptest.NewRequest("GET", "http://node"+client.Prefix+"/caller", nil), httptest.NewRecorder()
		r.Header.Set("Authorization", "Bearer chy_guess")
		a.api.ServeHTTP(w, r)
		problemOf(t, w.Header(), w.Body.Bytes())
		if seen[w.Code]++; w.Code != 429 && w.Header().Get("WWW-Authenticate") == "" {
			t.Fatal("401 without WWW-Authenticate")
		}
	}
	if seen[401] != 200 || seen[429] != 100 {
		t.Fatalf("statuses %v", seen)
	}
}
