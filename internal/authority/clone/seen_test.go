package clone_test

import (
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/clone"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// TestSeenFromAStandby looks at the nodes from one that reads at a standby: the standby is behind, and then it is all that there is. When
// a node was seen is dated by the primary's clock alone, which is an hour behind the standby's in the end.
func TestSeenFromAStandby(t *testing.T) {
	t.Parallel()
	server := pkitest.Postgres(t)
	server.Exec(t, "CREATE DATABASE seen")
	a, ctx := newLocal(t, server.URL("seen")), t.Context()
	must(t, a.set("durability", "provider"))
	m, two := a.join("n2")
	must(t, two.Clones.Register(ctx, m.in.Address, time.Now()))
	standby := server.Standby(t, "local", "fsync=off")
	reads := a.openAt(m, db.Options{URL: a.url, ReadURL: standby.URL("seen")})
	shown := func() (one, other *client.Clone) {
		t.Helper()
		all, _, err := reads.Clones.List(ctx, a.admin, "", 10)
		if err != nil || len(all) != 2 {
			t.Fatalf("it shows %+v, %v", all, err)
		}
		return &all[0], &all[1]
	}

	must(t, a.Clones.Report(ctx, clone.Self{}, time.Now())) // a standby that is copied just now waits for what comes next
	standby.Replayed(t, server)
	standby.Exec(t, "SELECT pg_wal_replay_pause()")
	must(t, two.Clones.Report(ctx, clone.Self{}, time.Now()))
	if _, n2 := shown(); !n2.Ready {
		t.Errorf("it has reported, and the standby is behind: %v", n2.NotReady)
	}

	standby.Exec(t, "SELECT pg_wal_replay_resume()")
	a.exec(`UPDATE node SET seen_at = $1 WHERE name = 'n1'`, db.Micros(time.Now().Add(-time.Hour)))
	a.exec(`UPDATE node SET seen_at = $1 WHERE name = 'n2'`, db.Micros(time.Now().Add(-time.Hour-time.Minute)))
	standby.Replayed(t, server)
	if n1, _ := shown(); n1.Ready {
		t.Error("it was seen an hour ago, and is ready")
	}
	server.Stop()
	if n1, n2 := shown(); !n1.Ready || n2.Ready {
		t.Errorf("of two, the one was seen a minute after the other, and that is all that is known: %v, %v", n1.NotReady, n2.NotReady)
	}
}
