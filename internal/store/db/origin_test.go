package db_test

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/schema"
)

// TestReadsAtAStandbyOfThePrimaryAlone: what is no standby of the primary is refused as the server to read from, at the start and at each
// connection, before anything of it is given to anybody.
func TestReadsAtAStandbyOfThePrimaryAlone(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	other := pkitest.Postgres(t, "fsync=off", "full_page_writes=off")
	other.Exec(t, "CREATE DATABASE chancery")
	p.primary.Exec(t, "CREATE DATABASE second")
	for url, value := range map[string]int64{p.primary.URL("chancery"): 7, other.URL("chancery"): 666, p.primary.URL("second"): 666} {
		d := pkitest.Open(t, db.Options{URL: url})
		if err := schema.Migrate(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		if err := put(t, d, value); err != nil {
			t.Fatal(err)
		}
	}
	p.standby.Replayed(t, p.primary)
	t.Run("at the start", func(t *testing.T) {
		for url, says := range map[string]string{
			other.URL("chancery"):    "has the system identifier",
			p.standby.URL("second"):  "another database of the same cluster",
			p.standby.URL("nothing"): "", // one that is away is none of the start's business
		} {
			o := p.patient()
			o.ReadURL = url
			d, err := db.Open(t.Context(), o)
			if err == nil {
				_ = d.Close()
			}
			if says == "" != (err == nil) || says != "" && (!fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "database_read leads to another") ||
				!strings.Contains(err.Error(), says)) {
				t.Errorf("%s: %v", url, err)
			}
		}
	})
	t.Run("at another connection", func(t *testing.T) { p.becomesAnother(t, other) })
	t.Run("when the primary is met", func(t *testing.T) { p.isMetLater(t, other) })
	t.Run("a copy that goes its own way", p.goesItsOwnWay) // the last: it takes long to make
}

// seven fails where a read gives anything but what the primary has.
func seven(t *testing.T, d *db.DB) {
	t.Helper()
	for range 5 {
		if got, _, err := look(t, d); err != nil || got != 7 {
			t.Errorf("read %d, %v", got, err)
		}
	}
}

// becomesAnother has the address lead to another cluster while the node runs.
func (p pair) becomesAnother(t *testing.T, other *pkitest.PostgresServer) {
	var to atomic.Int64
	to.Store(int64(p.standby.Port))
	o := p.patient()
	o.ReadURL = fmt.Sprintf("postgres://chancery@127.0.0.1:%d/chancery?sslmode=disable", switchboard(t, &to))
	d := pkitest.Open(t, o)
	seven(t, d)
	if err := d.Read(t.Context(), func(*db.Tx) error { // so that the next needs a connection of its own
		to.Store(int64(other.Port))
		seven(t, d)
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// isMetLater has a node start while the primary stands still, beside a server of which nobody can say whose it is. Once the primary has
// answered, nothing more is read there.
func (p pair) isMetLater(t *testing.T, other *pkitest.PostgresServer) {
	p.primary.Freeze(t)
	thaw := sync.OnceFunc(func() { p.primary.Thaw(t) })
	defer thaw()
	o, log := p.options, &lines{}
	o.ReadURL, o.Logger = other.URL("chancery"), slog.New(slog.NewTextHandler(log, nil))
	o.Patience = 3 * time.Second
	d := pkitest.Open(t, o)
	if d.Away() == nil {
		t.Fatal("the primary answers")
	}
	watch(t, d)
	thaw()
	await(t, "that the primary answers", func() bool { return d.Away() == nil })
	await(t, "that the other is told of", func() bool { return log.count("is no standby of the primary") > 0 })
	seven(t, d)
}

// goesItsOwnWay has a copy of the cluster be promoted by itself, as one that was made to try something: what is written there is nothing that
// this authority knows.
func (p pair) goesItsOwnWay(t *testing.T) {
	astray := p.primary.Standby(t, "astray", "fsync=off")
	astray.Exec(t, "SELECT pg_promote(true, 180)")
	if err := put(t, pkitest.Open(t, db.Options{URL: astray.URL("chancery")}), 666); err != nil {
		t.Fatal(err)
	}
	o := p.patient()
	o.ReadURL = astray.URL("chancery")
	seven(t, pkitest.Open(t, o))
	// While the primary is away it may be the next, and is read.
	o.ReadURL = p.primary.URL("chancery")
	seven(t, pkitest.Open(t, o))
}
