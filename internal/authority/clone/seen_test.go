package clone_test

import (
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/clone"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/upkeep/setup"
)

// TestSeenFromAStandby looks at the nodes from one that reads at a standby: the standby is behind, and then it is all that there is. When
// a node was seen is held against the primary's clock alone, as this process has heard it last.
func TestSeenFromAStandby(t *testing.T) {
	t.Parallel()
	server := pkitest.Postgres(t)
	server.Exec(t, "CREATE DATABASE seen")
	a, ctx := newLocal(t, server.URL("seen")), t.Context()
	must(t, a.set("durability", "provider"))
	m, two := a.join("n2")
	must(t, two.Clones.Register(ctx, m.in.Address, time.Now()))
	standby := server.Standby(t, "local", "fsync=off")
	local := db.Options{URL: a.url, ReadURL: standby.URL("seen")}
	looked, reported, fresh := a.openAt(m, local), a.openAt(m, local), a.openAt(m, local)
	shown := func(s *setup.Services) (one, other *client.Clone) {
		t.Helper()
		all, _, err := s.Clones.List(ctx, a.admin, "", 10)
		if err != nil || len(all) != 2 {
			t.Fatalf("it shows %+v, %v", all, err)
		}
		return &all[0], &all[1]
	}

	must(t, a.Clones.Report(ctx, clone.Self{}, time.Now())) // a standby that is copied just now waits for what comes next
	standby.Replayed(t, server)
	standby.Exec(t, "SELECT pg_wal_replay_pause()")
	must(t, two.Clones.Report(ctx, clone.Self{}, time.Now()))
	if _, n2 := shown(looked); !n2.Ready {
		t.Errorf("it has reported, and the standby is behind: %v", n2.NotReady)
	}

	standby.Exec(t, "SELECT pg_wal_replay_resume()")
	must(t, reported.Clones.Register(ctx, m.in.Address, time.Now()))
	must(t, reported.Clones.Report(ctx, clone.Self{}, time.Now()))
	a.exec(`UPDATE node SET seen_at = $1 WHERE name = 'n1'`, db.Micros(time.Now().Add(-time.Hour)))
	a.exec(`UPDATE node SET seen_at = $1 WHERE name = 'n2'`, db.Micros(time.Now().Add(time.Hour))) // it is still fresh at the end, however slow this is
	standby.Replayed(t, server)
	if n1, n2 := shown(looked); n1.Ready || !n2.Ready {
		t.Errorf("the one was seen an hour ago, the other just now: %v, %v", n1.NotReady, n2.NotReady)
	}
	server.Stop()
	for what, s := range map[string]*setup.Services{"that has looked before": looked, "that has reported": reported} {
		for range 2 {
			if n1, n2 := shown(s); n1.Ready || !strings.Contains(n1.NotReady[0], "it was last seen 1h") || !n2.Ready {
				t.Errorf("one %s, while the primary is away: %v, %v", what, n1.NotReady, n2.NotReady)
			}
		}
	}
	for range 2 {
		n1, n2 := shown(fresh)
		for _, n := range []*client.Clone{n1, n2} {
			if n.Ready || n.NotReady[0] != "not known since the primary is away" {
				t.Errorf("one that never heard the primary says of %s: %v", n.Name, n.NotReady)
			}
		}
	}
}
