package doctor

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/upkeep/finding"
)

// TestStandbysOfPostgreSQL asks real servers: a standby that follows, one whose way to the primary is cut though it lacks nothing, one of
// another cluster, and a slot whose log is gone.
func TestStandbysOfPostgreSQL(t *testing.T) {
	t.Parallel()
	primary := pkitest.Postgres(t, "fsync=off", "min_wal_size=32MB", "max_wal_size=32MB")
	other := pkitest.Postgres(t, "fsync=off").Standby(t, "other", "fsync=off")
	follows := primary.Standby(t, "follows", "fsync=off")
	for deadline := time.Now().Add(time.Minute); primary.Followers(t) == 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) { // the next copy may take the log away that one needs which does not follow yet
			t.Fatal("the standby does not follow")
		}
	}
	cut := primary.Standby(t, "cut", "fsync=off", "primary_conninfo=host=/nowhere port=1")
	var hosts []string
	for _, s := range []*pkitest.PostgresServer{follows, cut, primary, other} {
		hosts = append(hosts, fmt.Sprintf("127.0.0.1:%d", s.Port))
	}
	o := Database{URL: "postgres://chancery@" + strings.Join(hosts, ",") + "/postgres?sslmode=disable", Durability: db.Local, ReadURL: other.TCP("postgres")}
	look := func() []finding.Finding {
		t.Helper()
		found, err := DatabaseLook(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	told := func(found []finding.Finding, rule, object string) *finding.Finding {
		for i, f := range found {
			if f.Check == "database."+rule && (object == "" || f.Object == object) {
				return &found[i]
			}
		}
		return nil
	}
	found := look()
	for rule, at := range map[string]string{"standby": hosts[0], "standby.severed": hosts[1], "cluster.mixed": "", "read.foreign": hosts[3]} {
		if told(found, rule, at) == nil {
			t.Errorf("%s of %q is not told: %+v", rule, at, found)
		}
	}
	if f := told(found, "standby.severed", hosts[1]); f != nil && !strings.Contains(f.Seen, "receives no log") {
		t.Errorf("of the one that is cut it says %q", f.Seen)
	}
	if told(found, "standby.severed", hosts[0]) != nil || told(found, "standby", hosts[3]) != nil || told(found, "slot.lost", "") != nil {
		t.Errorf("it tells what is not so: %+v", found)
	}
	// The one that reads beside a primary that it follows is well.
	o.ReadURL = follows.TCP("postgres")
	if f := told(look(), "read", hosts[0]); f == nil || f.Level != finding.OK {
		t.Errorf("the standby that follows is read: %+v", f)
	}
	// A slot of nobody, and more log than it may keep.
	primary.Exec(t, "ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
	primary.Reload(t)
	primary.Exec(t, "SELECT pg_create_physical_replication_slot('gone', true)")
	for range 5 {
		primary.Exec(t, "SELECT pg_logical_emit_message(true, 'log', 'more')")
		primary.Exec(t, "SELECT pg_switch_wal()")
	}
	primary.Exec(t, "CHECKPOINT")
	if f := told(look(), "slot.lost", hosts[2]); f == nil || !strings.Contains(f.Seen, "gone") {
		t.Errorf("a slot that is lost: %+v", f)
	}
}
