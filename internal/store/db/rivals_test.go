package db

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"
)

// TestRivalsAreAskedBesideTheWatch: a server that takes connections and says nothing holds nobody up, and is not asked twice at once.
func TestRivalsAreAskedBesideTheWatch(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	url := fmt.Sprintf("postgres://chancery@%s/postgres?sslmode=disable", silent.Addr())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var r rivals
	now := time.Now()
	r.ask(ctx, url, &timeline{}, now)
	conn, err := silent.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// It came back, and the one that it asks has not answered: the next question is left out, however long ago the first was.
	r.ask(ctx, url, &timeline{}, now.Add(time.Minute))
	if !r.asked.Equal(now) {
		t.Error("it asks again while it waits for the answer")
	}
	cancel()
	r.wait()
	r.ask(t.Context(), url, &timeline{}, now.Add(rivalsEvery-1))
	if !r.asked.Equal(now) {
		t.Error("it asks again at once")
	}
}
