package bench

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestLoadCountsWhatPassedAndWhatDidNot answers in each framing that HTTP/1.1 has, and every tenth time badly.
func TestLoadCountsWhatPassedAndWhatDidNot(t *testing.T) {
	var calls atomic.Int64
	long := strings.Repeat("answer ", 2000) // longer than what net/http buffers, so it comes in chunks
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := calls.Add(1)
		switch {
		case n > 10 && n%10 == 0:
			w.WriteHeader(http.StatusTeapot)
		case n%2 == 0:
			fmt.Fprint(w, long)
		default:
			fmt.Fprint(w, "answer ")
		}
	}))
	defer server.Close()
	address := strings.TrimPrefix(server.URL, "http://")
	target := &target{
		address: address,
		request: func(buf []byte, _ int) ([]byte, error) { return append(buf, get(address, "/")...), nil },
		check: func(_, status int, body []byte) error {
			if status != 200 || len(body) != len(long) && len(body) != len("answer ") {
				return fmt.Errorf("status %d, %d octets", status, len(body))
			}
			return nil
		},
	}
	for _, once := range []bool{false, true} {
		target.once = once
		var m *measured
		for length := 50 * time.Millisecond; m == nil || calls.Load() < 40; length *= 2 { // longer, where much else runs
			calls.Store(0)
			var err error
			if m, err = target.put(t.Context(), 3, length); err != nil {
				t.Fatal(err)
			}
		}
		passed, total := int64(len(m.latencies)), calls.Load()
		if passed+int64(m.errors)+3 != total { // 3 calls came before the measured time
			t.Errorf("once %v: %d calls passed and %d did not, of %d", once, passed, m.errors, total)
		}
		if m.errors == 0 || m.first == nil || m.rate() <= 0 {
			t.Errorf("once %v: %d calls, %d errors (%v), %v a second", once, total, m.errors, m.first, m.rate())
		}
	}
}

func TestLoadEndsWithItsRequests(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer server.Close()
	address := strings.TrimPrefix(server.URL, "http://")
	left := 2
	target := &target{
		address: address,
		request: func(buf []byte, _ int) ([]byte, error) {
			if left--; left < 0 {
				return nil, errExhausted
			}
			return append(buf, get(address, "/")...), nil
		},
		check: func(int, int, []byte) error { return nil },
	}
	if m, err := target.put(t.Context(), 1, time.Minute); !errors.Is(err, errExhausted) {
		t.Errorf("got %v, %v", m, err)
	}
}

func TestLoadWithoutServer(t *testing.T) {
	server := httptest.NewServer(nil)
	server.Close()
	target := &target{
		address: strings.TrimPrefix(server.URL, "http://"),
		request: func(buf []byte, _ int) ([]byte, error) { return buf, nil },
	}
	if m, err := target.put(t.Context(), 2, time.Minute); err == nil {
		t.Errorf("a server that is not there answered: %+v", m)
	}
}
