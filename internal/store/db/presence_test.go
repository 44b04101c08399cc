package db_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/schema"
)

// pair is a primary with an asynchronous standby, and a node that writes at the one and reads at the other.
type pair struct {
	primary, standby *pkitest.PostgresServer
	options          db.Options
}

func newPair(t *testing.T) pair {
	t.Helper()
	primary := pkitest.Postgres(t, "fsync=off", "full_page_writes=off", "wal_keep_size=64MB")
	primary.Exec(t, "CREATE DATABASE chancery")
	first := pkitest.Open(t, db.Options{URL: primary.URL("chancery")})
	if err := schema.Migrate(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	if err := first.Heartbeat(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	standby := primary.Standby(t, "n1", "fsync=off")
	return pair{primary, standby, db.Options{URL: primary.TCP("chancery") + "&connect_timeout=1", ReadURL: standby.URL("chancery") + "&connect_timeout=1", Node: "n1", Patience: time.Second}}
}

// patient is for a node whose servers answer or are gone, and which nothing watches at first: on a busy machine a moment of theirs may be
// longer than the patience of the others.
func (p pair) patient() db.Options {
	o := p.options
	o.URL, o.ReadURL, o.Patience = p.primary.TCP("chancery"), p.standby.URL("chancery"), 0
	return o
}

// watch runs Watch for as long as the test.
func watch(t *testing.T, d *db.DB) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- d.Watch(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("watch: %v", err)
		}
	})
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not come to be within a minute", what)
		}
	}
}

// put writes a value of a setting's row, which any table would do for.
func put(t *testing.T, d *db.DB, value int64) error {
	return d.Tx(t.Context(), func(tx *db.Tx) error {
		_, err := tx.Exec(t.Context(), `INSERT INTO clock (name, high_water) VALUES ('test', $1)
			ON CONFLICT (name) DO UPDATE SET high_water = excluded.high_water`, value)
		return err
	})
}

// written is put where the primary is watched and there: on a busy machine it may take longer than the pair's patience for a moment.
func written(t *testing.T, d *db.DB, value int64) {
	t.Helper()
	await(t, "a write", func() bool { return put(t, d, value) == nil })
}

func look(t *testing.T, d *db.DB) (value int64, lacks bool, err error) {
	err = d.Read(t.Context(), func(tx *db.Tx) error {
		lacks = tx.Lacks()
		return tx.QueryRow(t.Context(), `SELECT COALESCE(MAX(high_water), 0) FROM clock WHERE name = 'test'`).Scan(&value)
	})
	return value, lacks, err
}

// TestAwayAndBehind loses each of the two servers of one pair, which takes long to start.
func TestAwayAndBehind(t *testing.T) {
	p := newPair(t)
	for _, one := range []struct {
		name string
		test func(*testing.T, pair)
	}{
		{"a standby given as the primary", standbyAsPrimary}, {"the standby frozen", standbyFrozen}, {"the primary frozen", primaryFrozen},
		{"the first host silent", firstHostSilent}, {"several servers to read", severalToRead},
		{"several servers behind one address", behindABalancer},
		{"started while the primary is away", startedWithout}, {"the login ended during an absence", loginEnded},
		{"the standby behind, and the primary killed", standbyBehind},
	} {
		t.Run(one.name, func(t *testing.T) {
			p.options.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
			one.test(t, p)
		})
	}
}

// standbyBehind has the standby stop to replay: a node's own writes are read all the same, and soon others' are.
func standbyBehind(t *testing.T, p pair) {
	d := pkitest.Open(t, p.patient())
	if err := put(t, d, 1); err != nil {
		t.Fatal(err)
	}
	p.standby.Replayed(t, p.primary)
	p.standby.Exec(t, "SELECT pg_wal_replay_pause()")
	for value := int64(2); value < 10; value++ {
		if err := put(t, d, value); err != nil {
			t.Fatal(err)
		}
		if got, lacks, err := look(t, d); err != nil || got != value || lacks {
			t.Fatalf("wrote %d and read %d, lacking %t: %v", value, got, lacks, err)
		}
	}
	// Whoever reaches the primary is told nothing older, though it wrote nothing itself.
	o := p.patient()
	o.Node = "n2"
	var said lines
	o.Logger = slog.New(slog.NewTextHandler(io.MultiWriter(t.Output(), &said), nil))
	other := pkitest.Open(t, o)
	reads := func(want int64, standby bool) bool {
		var at bool
		got, _, err := look(t, other)
		if err == nil {
			err = other.Read(t.Context(), func(tx *db.Tx) error { at = tx.AtStandby(); return nil })
		}
		return err == nil && got == want && at == standby
	}
	p.standby.Exec(t, "SELECT pg_wal_replay_resume()")
	p.standby.Replayed(t, p.primary)
	watch(t, other)
	watch(t, d)
	await(t, "the standby to be read, which follows", func() bool { return reads(9, true) && other.Age(time.Now()) == 0 && other.Unread() == nil })
	p.standby.Exec(t, "SELECT pg_wal_replay_pause()")
	written(t, d, 10)
	await(t, "that it is said", func() bool {
		err := other.Unread()
		return err != nil && strings.Contains(err.Error(), "is behind the primary")
	})
	for range 100 { // from then on nothing else
		if !reads(10, false) || other.Age(time.Now()) != 0 {
			t.Fatal("it is read at the standby, which is behind")
		}
	}
	if said.count("is behind, and is not read") == 0 {
		t.Error("the log does not say so")
	}
	await(t, "how far it is behind", func() bool { b := other.Behind(); return b != nil && b.For > time.Second && b.Octets > 0 })
	// With the primary away, the older state is what there is, and it says so.
	p.primary.Kill(t)
	await(t, "the older state", func() bool { return reads(9, true) })
	if age := other.Age(time.Now().Add(time.Minute)); age < time.Minute || other.Unread() != nil {
		t.Errorf("a minute later the data are called %v old; %v", age, other.Unread())
	}
	await(t, "the absence of the primary", func() bool { return d.Away() != nil })
	if got, lacks, err := look(t, d); err != nil || got != 9 || !lacks {
		t.Fatalf("read %d, lacking %t: %v", got, lacks, err)
	}
	p.standby.Exec(t, "SELECT pg_wal_replay_resume()")
	p.standby.Exec(t, "SELECT pg_promote()") // it replays what it has received
	await(t, "the last write at the standby", func() bool { got, lacks, err := look(t, d); return err == nil && got == 10 && !lacks })
}

func primaryFrozen(t *testing.T, p pair) {
	d := pkitest.Open(t, p.options)
	watch(t, d)
	written(t, d, 1)
	await(t, "that data beside a primary have no age", func() bool { return d.Age(time.Now()) == 0 })
	p.standby.Replayed(t, p.primary)
	p.primary.Freeze(t)
	hanging := make(chan error, 1)
	go func() { hanging <- put(t, d, 2) }()
	await(t, "the absence of the primary", func() bool { return d.Away() != nil })
	if err := <-hanging; !fault.Is(err, fault.Unavailable) {
		t.Fatalf("a write that hung: %v", err)
	}
	if err := put(t, d, 3); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "cannot be reached since") {
		t.Fatalf("a write while the primary is away: %v", err)
	}
	if got, _, err := look(t, d); err != nil || got != 1 {
		t.Fatalf("read %d, %v", got, err)
	}
	if err := d.ReadSnapshot(t.Context(), func(*db.Tx) error { return nil }); !fault.Is(err, fault.Unavailable) {
		t.Fatalf("a snapshot of the primary: %v", err)
	}
	if age := d.Age(time.Now().Add(time.Minute)); age < time.Minute {
		t.Fatalf("a minute later the data are called %v old", age)
	}

	// A node that starts now serves what only reads.
	late := pkitest.Open(t, p.options)
	watch(t, late)
	if got, _, err := look(t, late); err != nil || got != 1 {
		t.Fatalf("a node that starts reads %d, %v", got, err)
	}
	if err := put(t, late, 4); !fault.Is(err, fault.Unavailable) {
		t.Fatalf("a node that starts writes: %v", err)
	}
	p.primary.Thaw(t)
	for _, one := range []*db.DB{d, late} {
		await(t, "the primary", func() bool { return put(t, one, 5) == nil })
		if got, _, err := look(t, one); err != nil || got != 5 {
			t.Fatalf("read %d, %v", got, err)
		}
	}
}

// loginEnded cuts a node off, removes it, and heals the network: what PostgreSQL says then is why the primary is away, not what was first.
func loginEnded(t *testing.T, p pair) {
	p.primary.Exec(t, "CREATE ROLE leaver LOGIN")
	network := filepath.Join(t.TempDir(), "network")
	heal := func() {
		t.Helper()
		if err := os.Symlink(p.primary.Dir, network); err != nil {
			t.Fatal(err)
		}
	}
	heal()
	var said lines
	d := pkitest.Open(t, db.Options{URL: fmt.Sprintf("postgres://leaver@/chancery?host=%s&port=%d", network, p.primary.Port),
		Logger: slog.New(slog.NewTextHandler(io.MultiWriter(t.Output(), &said), nil))})
	watch(t, d)
	if err := os.Remove(network); err != nil {
		t.Fatal(err)
	}
	await(t, "the absence of the primary", func() bool {
		p.primary.Exec(t, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'leaver'")
		return d.Away() != nil
	})
	if err := d.Away(); db.LoginRefused(err) {
		t.Fatalf("cut off, it has heard of its login: %v", err)
	}
	p.primary.Exec(t, "ALTER ROLE leaver NOLOGIN")
	heal()
	await(t, "that its login was refused", func() bool { return db.LoginRefused(d.Away()) })
	await(t, "the line that says so", func() bool { return said.count("does not let this node in") == 1 })
	try := errors.Unwrap(d.Away())
	await(t, "the next try", func() bool { return errors.Unwrap(d.Away()) != try })
	if n, m := said.count("does not let this node in"), said.count("does not answer"); n != 1 || m != 1 {
		t.Errorf("of one absence it is said %d times that it is, and %d times why", m, n)
	}
}

// lines is what was logged.
type lines struct {
	mu   sync.Mutex
	text strings.Builder // guarded by mu
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) count(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), what)
}

// startedWithout has a node acknowledge what its standby does not have, and start again while the primary is away: it knows that
// something is lacking, and not what.
func startedWithout(t *testing.T, p pair) {
	o := p.patient()
	o.Node, o.MarkFile = "n3", filepath.Join(t.TempDir(), "mark")
	kept := func() int64 {
		t.Helper()
		text, err := os.ReadFile(o.MarkFile)
		if err != nil {
			t.Fatal(err)
		}
		number, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return number
	}
	row := func(d *db.DB) (number int64) {
		t.Helper()
		await(t, "the row at the primary", func() bool {
			return d.ReadSnapshot(t.Context(), func(tx *db.Tx) error {
				return tx.QueryRow(t.Context(), `SELECT number FROM write_mark WHERE node = 'n3'`).Scan(&number)
			}) == nil
		})
		return number
	}
	former := func(d *db.DB) (lacks bool) {
		t.Helper()
		if err := d.Read(t.Context(), func(tx *db.Tx) error { lacks = tx.LacksFormer(); return nil }); err != nil {
			t.Fatal(err)
		}
		return lacks
	}
	first, err := db.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := put(t, first, 20); err != nil {
		t.Fatal(err)
	}
	if number := row(first); kept() < number {
		t.Fatalf("acknowledged %d, and kept %d", number, kept())
	}
	p.standby.Replayed(t, p.primary)
	p.standby.Exec(t, "SELECT pg_wal_replay_pause()")
	if err := put(t, first, 21); err != nil {
		t.Fatal(err)
	}
	number := row(first)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if kept() != number {
		t.Fatalf("acknowledged %d and ended, and kept %d", number, kept())
	}
	p.primary.Freeze(t)
	o.URL, o.ReadURL, o.Patience = p.options.URL, p.options.ReadURL, p.options.Patience
	second, forgot := pkitest.Open(t, o), o
	forgot.MarkFile = filepath.Join(t.TempDir(), "mark")
	third := pkitest.Open(t, forgot)
	for _, d := range []*db.DB{second, third} {
		watch(t, d)
		if got, lacks, err := look(t, d); err != nil || got != 20 || !lacks || !former(d) {
			t.Fatalf("read %d, lacking %t and of before %t: %v", got, lacks, former(d), err)
		}
	}
	p.standby.Exec(t, "SELECT pg_wal_replay_resume()")
	await(t, "the last write at the standby", func() bool { got, lacks, err := look(t, second); return err == nil && got == 21 && !lacks })
	if former(second) {
		t.Error("the standby has everything, and is said to lack something")
	}
	if !former(third) {
		t.Error("a node whose file is lost says that nothing is lacking")
	}
	p.primary.Thaw(t)
	await(t, "the primary", func() bool { return put(t, third, 22) == nil })
	p.standby.Replayed(t, p.primary)
	if got, lacks, err := look(t, third); err != nil || got != 22 || lacks || former(third) {
		t.Fatalf("read %d, lacking %t and of before %t: %v", got, lacks, former(third), err)
	}
	for i := int64(23); i < 40; i++ { // many in a moment
		written(t, second, i)
		if kept() < row(second) {
			t.Fatal("a number was acknowledged that is not kept")
		}
	}
	await(t, "the exact number", func() bool { return kept() == row(second) })
	// What cannot be kept is not acknowledged.
	o.MarkFile = filepath.Join(t.TempDir(), "none", "mark")
	if err := put(t, pkitest.Open(t, o), 41); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "nothing was changed") {
		t.Fatalf("a write that cannot be kept: %v", err)
	}
}

func severalToRead(t *testing.T, p pair) {
	o := p.options
	o.ReadURL = fmt.Sprintf("postgres://chancery@127.0.0.1:%d,127.0.0.1:%d/chancery?sslmode=prefer", p.standby.Port, p.primary.Port)
	if d, err := db.Open(t.Context(), o); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "names several servers") {
		t.Fatalf("%v, %v", d, err)
	}
	if err := db.CheckReadURL("postgres://chancery@127.0.0.1:5432/chancery?sslmode=prefer"); err != nil {
		t.Error(err)
	}
}

func standbyFrozen(t *testing.T, p pair) {
	d := pkitest.Open(t, p.options)
	watch(t, d)
	written(t, d, 1)
	p.standby.Freeze(t)
	if got, _, err := look(t, d); err != nil || got != 1 { // it waits until Watch has seen it
		t.Fatalf("read %d, %v", got, err)
	}
	if age := d.Age(time.Now()); age != 0 {
		t.Fatalf("the primary's data are called %v old", age)
	}
	written(t, d, 2)
	if got, _, err := look(t, d); err != nil || got != 2 {
		t.Fatalf("read %d, %v", got, err)
	}
	p.standby.Thaw(t)
}

func standbyAsPrimary(t *testing.T, p pair) {
	o := p.options
	o.URL = p.standby.TCP("chancery")
	d := pkitest.Open(t, o)
	watch(t, d)
	await(t, "its absence", func() bool { return d.Away() != nil })
	if err := put(t, d, 1); !fault.Is(err, fault.Unavailable) {
		t.Fatalf("wrote at a standby: %v", err)
	}
	if _, _, err := look(t, d); err != nil {
		t.Fatal(err)
	}
}

// firstHostSilent names a host first that takes connections and says nothing: the primary is found all the same, at the start and
// when it comes back.
func firstHostSilent(t *testing.T, p pair) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	o := p.options
	o.URL = fmt.Sprintf("postgres://chancery@%s,127.0.0.1:%d/chancery?sslmode=disable&target_session_attrs=read-write&connect_timeout=1", silent.Addr(), p.primary.Port)
	d := pkitest.Open(t, o)
	watch(t, d)
	await(t, "a write", func() bool { return put(t, d, 6) == nil })
	p.primary.Freeze(t)
	await(t, "the absence of the primary", func() bool { return d.Away() != nil })
	p.primary.Thaw(t)
	await(t, "the primary", func() bool { return put(t, d, 7) == nil })
}

// TestReadWithoutStandby: a node that starts while its standby is not there yet, as after a power failure, reads at the primary at once,
// though nobody watches the servers so early.
func TestReadWithoutStandby(t *testing.T) {
	t.Parallel()
	url := pkitest.URL(t, db.Postgres)
	first := pkitest.Open(t, db.Options{URL: url})
	if err := schema.Migrate(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	if err := first.Heartbeat(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	d := pkitest.Open(t, db.Options{URL: url, ReadURL: "postgres://nobody@/chancery?host=" + t.TempDir(), Node: "n1"})
	if err := d.LearnClock(t.Context()); err != nil {
		t.Errorf("learn the time: %v", err)
	}
	if seen, err := d.SeenTime(t.Context()); err != nil || seen.IsZero() {
		t.Errorf("seen %v, %v", seen, err)
	}
}
