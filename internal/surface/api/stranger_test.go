package api_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"chancery/client"
)

// watched is a body that says whether anybody read of it.
type watched struct {
	io.Reader
	read bool
}

func (w *watched) Read(p []byte) (int, error) {
	w.read = true
	return w.Reader.Read(p)
}

func (w *watched) Close() error { return nil }

// guess has a stranger at an address ask to join as a node, with a secret that is none.
func (a *authority) guess(from string) (status int, read bool) {
	body := &watched{Reader: strings.NewReader(`{"secret":"guess","name":"x","address":"https://x.test","public_key":"age1x","csr":"x","release":"1","schema":1,"time":"` +
		time.Now().UTC().Format(time.RFC3339) + `"}`)}
	r := httptest.NewRequest(http.MethodPost, "http://node"+client.Prefix+"/clones/join", body)
	r.RemoteAddr = from
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	a.api.ServeHTTP(w, r)
	return w.Code, body.read
}

// TestGuessesOfNodesAreLimited guesses tokens of nodes: whoever has guessed too often is sent away before anything is done for him, as
// before his body is read, and nobody else is.
func TestGuessesOfNodesAreLimited(t *testing.T) {
	t.Parallel()
	a := newSQLite(t)
	a.api.FewGuesses()
	denied, limited := 0, 0
	for range 300 {
		switch status, read := a.guess("192.0.2.7:1000"); {
		case status == http.StatusForbidden && read:
			denied++
		case status == http.StatusTooManyRequests && !read:
			limited++
		default:
			t.Fatalf("answered %d, and its body was read: %t", status, read)
		}
	}
	if denied != 200 {
		t.Errorf("of 300 guesses %d were answered, and %d sent away", denied, limited)
	}
	if status, read := a.guess("192.0.2.8:1000"); status != http.StatusForbidden || !read {
		t.Errorf("another pays for it: %d", status)
	}
	// Another port does not make another of him.
	if status, read := a.guess("192.0.2.7:2000"); status != http.StatusTooManyRequests || read {
		t.Errorf("the same from another port: %d", status)
	}
	if strings.Contains(a.log.String(), `"level":"ERROR"`) {
		t.Error("guesses are logged as errors of ours")
	}
}

// TestBadBodiesOfNodes sends what no machine that joins sends.
func TestBadBodiesOfNodes(t *testing.T) {
	t.Parallel()
	a := newSQLite(t)
	good := `"secret":"s","name":"x","address":"https://x.test","public_key":"age1x","csr":"x","release":"1","schema":1,"time":"2026-01-01T00:00:00Z"`
	for what, c := range map[string]struct {
		body   string
		status int
	}{
		"10 MB":             {`{"secret":"` + strings.Repeat("x", 10<<20) + `"}`, 413},
		"10 MB of spaces":   {strings.Repeat(" ", 10<<20) + "{" + good + "}", 413},
		"nesting":           {strings.Repeat("[", 30_000), 400},
		"nesting that ends": {`{` + good + `,"names":` + strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000) + `}`, 400},
		"an odd field":      {`{` + good + `,"roles":["admin"]}`, 422},
		"a long secret":     {`{` + strings.Replace(good, `"s"`, `"`+strings.Repeat("s", 257)+`"`, 1) + `}`, 422},
		"a long request":    {`{` + strings.Replace(good, `"csr":"x"`, `"csr":"`+strings.Repeat("s", 20_001)+`"`, 1) + `}`, 422},
		"many names":        {`{` + good + `,"names":[` + strings.Repeat(`"dns:x",`, 50) + `"dns:x"]}`, 422},
		"a number":          {`{` + strings.Replace(good, `"schema":1`, `"schema":1e400`, 1) + `}`, 400},
		"NUL, of no token":  {`{` + strings.Replace(good, `"x"`, `"x\u0000"`, 1) + `}`, 403},
		"nothing":           {``, 400},
	} {
		status, header, body := a.request("POST", client.Prefix+"/clones/join", "", c.body)
		if p := problemOf(t, header, body); status != c.status || len(body) > 10_000 || p.Status != c.status {
			t.Errorf("%s: %d %.300s", what, status, body)
		}
	}
	if strings.Contains(a.log.String(), `"level":"ERROR"`) {
		t.Errorf("bad input was logged as an error of ours: %.1000s", a.log)
	}
}
