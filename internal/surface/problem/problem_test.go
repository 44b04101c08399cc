package problem

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestEveryKindHasAWireForm(t *testing.T) {
	seen := map[int]fault.Kind{}
	for _, kind := range fault.Kinds {
		f, ok := forms[kind]
		if !ok || f.status < 400 || f.title == "" {
			t.Errorf("%s has no form: %+v", kind, f)
		}
		if other, twice := seen[f.status]; twice {
			t.Errorf("%s and %s share status %d", kind, other, f.status)
		}
		seen[f.status] = kind
		p := Of(fmt.Errorf("issue: %w", fault.New(kind, "rule %d", 7).At("/csr").WithHint("try %s", "this")), "r1")
		if p.Kind() != string(kind) || p.RequestID != "r1" {
			t.Errorf("%s became %+v", kind, p)
		}
		if shown := p.Detail == "rule 7" && p.Pointer == "/csr" && p.Hint == "try this"; shown != (kind != fault.Internal) {
			t.Errorf("%s: shown = %v: %+v", kind, shown, p)
		}
	}
	if len(forms) != len(fault.Kinds) || len(seen) < 9 {
		t.Errorf("%d forms for %d kinds", len(forms), len(fault.Kinds))
	}
	if p := Of(fault.New("new-kind", "a secret"), "r"); p.Status != 500 || strings.Contains(p.Detail, "secret") {
		t.Errorf("an unknown kind became %+v", p)
	}
}

// serve runs h inside Observe, and returns the answer and the log.
func serve(t *testing.T, m *Metrics, h http.HandlerFunc) (*http.Response, map[string]any) {
	t.Helper()
	var log bytes.Buffer
	s := httptest.NewServer(Observe(slog.New(slog.NewJSONHandler(&log, nil)), slog.LevelInfo, m, h))
	resp, err := http.Get(s.URL + "/x?token=geheim")
	if err == nil {
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		resp.Body = io.NopCloser(bytes.NewReader(body))
	}
	s.Close()
	if lines := strings.Count(log.String(), "\n"); lines != 1 {
		t.Fatalf("%d log lines, want 1: %s", lines, &log)
	}
	if strings.Contains(log.String(), "geheim") {
		t.Fatalf("the query reached the log: %s", &log)
	}
	var line map[string]any
	if err := json.Unmarshal(log.Bytes(), &line); err != nil {
		t.Fatal(err)
	}
	return resp, line
}

func TestInternalErrorsAreHiddenAndLoggedOnce(t *testing.T) {
	m := NewMetrics(prometheus.NewRegistry(), "test")
	resp, line := serve(t, m, func(w http.ResponseWriter, r *http.Request) {
		e := EventOf(r.Context())
		e.Route("op")
		e.Add(slog.String("serial", "01"))
		Write(w, r, errors.New("disk /secret/path is full"))
	})
	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != 500 || bytes.Contains(body, []byte("/secret")) || resp.Header.Get("Content-Type") != ContentType {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	if line["level"] != "ERROR" || line["reason"] != "disk /secret/path is full" || line["serial"] != "01" ||
		line["request_id"] != resp.Header.Get("X-Request-Id") || line["operation"] != "op" || line["status"] != 500.0 {
		t.Fatalf("logged %v", line)
	}
	if n := testutil.ToFloat64(m.requests.WithLabelValues("op", "internal")); n != 1 {
		t.Fatalf("counted %v", n)
	}
}

func TestPanicsAreAnsweredAndLogged(t *testing.T) {
	m := NewMetrics(prometheus.NewRegistry(), "test")
	resp, line := serve(t, m, func(http.ResponseWriter, *http.Request) { panic("boom") })
	if resp.StatusCode != 500 || line["panic"] != "boom" || !strings.Contains(line["stack"].(string), "problem_test.go") {
		t.Fatalf("%d, logged %v", resp.StatusCode, line)
	}
	resp, line = serve(t, m, func(w http.ResponseWriter, r *http.Request) {
		w.Write(bytes.Repeat([]byte("x"), 1<<16))
		panic("late")
	})
	if resp != nil {
		if body, err := io.ReadAll(resp.Body); err == nil && len(body) == 1<<16 && resp.ContentLength >= 0 {
			t.Fatal("an answer cut off by a panic looked whole")
		}
	}
	if line["panic"] != "late" || line["level"] != "ERROR" {
		t.Fatalf("logged %v", line)
	}
}

func TestBodiesOverTheLimitAreNamed(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 10))
		Write(w, r, fmt.Errorf("read: %w", err))
	}))
	defer s.Close()
	resp, err := http.Post(s.URL, "text/plain", strings.NewReader(strings.Repeat("x", 11)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var p client.Problem
	if err := json.NewDecoder(resp.Body).Decode(&p); err != nil || p.Status != 413 || !strings.Contains(p.Detail, "10 bytes") {
		t.Fatalf("%+v, %v", p, err)
	}
}

func TestRateLimit(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	l := NewRateLimiter(2, 3, 100)
	for i := range 3 {
		if err := l.Take("a", now); err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
	}
	err := l.Take("a", now)
	p := Of(err, "r")
	if !fault.Is(err, fault.RateLimited) || p.Status != 429 || p.RetryAfter != 500*time.Millisecond {
		t.Fatalf("fourth call: %v, %+v", err, p)
	}
	h := http.Header{}
	if Headers(h, p); h.Get("Retry-After") != "1" {
		t.Fatalf("Retry-After %q", h.Get("Retry-After"))
	}
	if err := l.Take("b", now); err != nil {
		t.Fatalf("another caller pays for the first: %v", err)
	}
	if err := l.Take("a", now.Add(500*time.Millisecond)); err != nil {
		t.Fatalf("after the wait: %v", err)
	}
}

func TestRateMayChange(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	l := NewRateLimiter(0.001, 1, 100)
	l.Take("a", now)
	if l.Set(0.001, 1); l.Take("a", now) == nil {
		t.Fatal("setting the same rate again filled the bucket")
	}
	l.Set(0, 1)
	for range 2 {
		if l.Take("a", now) != nil {
			t.Fatal("rate 0 sets no limit")
		}
	}
}

func TestRateLimiterIsBoundedAndKeepsActiveCallers(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	l := NewRateLimiter(0.001, 1, 100)
	if err := l.Take("loop", now); err != nil {
		t.Fatal(err)
	}
	for i := range 10_000 {
		l.Take(fmt.Sprint("stranger", i), now)
		if err := l.Take("loop", now); err == nil {
			t.Fatalf("after %d strangers the looping caller had a new bucket", i)
		}
	}
	if n := l.size(); n > 100 {
		t.Fatalf("%d callers remembered, want at most 100", n)
	}
}

func TestGateSendsAwayWhatItCannotServe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGate(1, time.Second)
		leave, err := g.Enter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.Enter(t.Context()); !fault.Is(err, fault.Unavailable) {
			t.Fatalf("second caller: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := g.Enter(ctx); !fault.Is(err, fault.Unavailable) {
			t.Fatalf("caller that left: %v", err)
		}
		go func() { time.Sleep(time.Millisecond); leave() }()
		if again, err := g.Enter(t.Context()); err != nil {
			t.Fatal(err)
		} else {
			again()
		}
	})
}

func TestETags(t *testing.T) {
	if Match("", ETag("2")) != nil || Match(`"1", "2"`, ETag("2")) != nil || Match("*", ETag("2")) != nil {
		t.Error("a tag that matches was refused")
	}
	if !fault.Is(Match(`"1"`, ETag("2")), fault.Conflict) || Match(`W/"2"`, ETag("2")) == nil {
		t.Error("If-Match compares strongly, and must refuse another version")
	}
	if !NoneMatch(`W/"2"`, ETag("2")) || NoneMatch("", ETag("2")) || NoneMatch(`"1"`, ETag("2")) {
		t.Error("If-None-Match compares weakly")
	}
}

// TestRequestsOfStrangersDoNotFillTheLog: each was a line at level info, of a length that the stranger chose.
func TestRequestsOfStrangersDoNotFillTheLog(t *testing.T) {
	for _, c := range []struct {
		err   error
		lines int
	}{
		{nil, 0}, {fault.New(fault.NotFound, "there is nothing"), 0}, {errors.New("the disk burns"), 1},
	} {
		var log bytes.Buffer
		h := Observe(slog.New(slog.NewJSONHandler(&log, nil)), slog.LevelDebug, NewMetrics(prometheus.NewRegistry(), "publish"),
			http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if c.err != nil {
					Write(w, r, c.err)
				}
			}))
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/crl/"+strings.Repeat("x", 1000), nil))
		if n := strings.Count(log.String(), "\n"); n != c.lines || c.lines > 0 && !strings.Contains(log.String(), `"level":"ERROR"`) {
			t.Errorf("%v: %d lines: %s", c.err, n, &log)
		}
	}
}
