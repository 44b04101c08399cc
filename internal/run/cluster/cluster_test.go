package cluster_test

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"testing"
	"time"

	"chancery/internal/run/cluster"
)

// await asks until the condition holds. A member that is put right on a machine that does much else may take minutes.
func await(t *testing.T, what string, ok func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	for {
		err := ok()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func write(ctx context.Context, url, statement string) error {
	pool, err := sql.Open("pgx", url)
	if err != nil {
		return err
	}
	defer pool.Close()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_, err = pool.ExecContext(ctx, statement)
	return err
}

// TestStandbyIsLostAndComesBack: the other standby becomes the one that commits wait for, and the lost one streams again when it is back.
func TestStandbyIsLostAndComesBack(t *testing.T) {
	c, err := cluster.Start(t.Context(), cluster.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(c.Dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the directory was left behind: %v", err)
		}
	}()
	url, err := c.Database(t.Context(), "first")
	if err != nil {
		t.Fatal(err)
	}
	await(t, "a table", func() error { return write(t.Context(), url, "CREATE TABLE IF NOT EXISTS kept (id INT)") })
	var lost *cluster.Member
	await(t, "commits wait for one", func() (err error) {
		lost, err = c.Synchronous(t.Context())
		return err
	})
	if err := lost.Kill(cluster.Machine); err != nil {
		t.Fatal(err)
	}
	await(t, "a write after the standby is lost", func() error { return write(t.Context(), url, "INSERT INTO kept VALUES (1)") })
	await(t, "commits wait for another", func() error {
		now, err := c.Synchronous(t.Context())
		if err == nil && now == lost {
			err = errors.New("they wait for the lost one")
		}
		return err
	})
	if err := lost.Restart(); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitHealthy(t.Context()); err != nil {
		t.Fatal(err)
	}
}
