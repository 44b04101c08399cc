package server

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/internal/authoritytest"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/once"
	"chancery/internal/store/settings"
	"chancery/internal/upkeep/backup"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/doctor"
	"chancery/internal/upkeep/finding"
	"chancery/internal/upkeep/setup"
	"chancery/internal/upkeep/status"
)

// drilling is a node's loop of drills with nothing else around it.
type drilling struct {
	*driller
	t   *testing.T
	dir datadir.Dir
}

func newDrilling(t *testing.T) *drilling {
	t.Helper()
	s, dir := authoritytest.Init(t, setup.Options{Online: true})
	if err := s.DB.LearnClock(t.Context()); err != nil {
		t.Fatal(err)
	}
	key, err := keys.LoadNodeKey(dir.NodeKey())
	if err != nil {
		t.Fatal(err)
	}
	return &drilling{t: t, dir: dir, driller: &driller{Services: s, dir: string(dir), key: key, version: "test", logger: slog.New(slog.DiscardHandler)}}
}

func (d *drilling) change(query string, args ...any) {
	d.t.Helper()
	if err := d.DB.Tx(d.t.Context(), func(tx *db.Tx) error { _, err := tx.Exec(d.t.Context(), query, args...); return err }); err != nil {
		d.t.Fatal(err)
	}
}

// made is how many drills the audit has.
func (d *drilling) made() int {
	d.t.Helper()
	page, err := d.Audit.Search(d.t.Context(), audit.Filter{Action: backup.DrillAction}, "", 100)
	if err != nil {
		d.t.Fatal(err)
	}
	return len(page.Events)
}

func (d *drilling) scratch() []string {
	d.t.Helper()
	left, err := filepath.Glob(filepath.Join(string(d.dir), "drill-*"))
	if err != nil {
		d.t.Fatal(err)
	}
	return left
}

// told is what doctor and status say of drills.
func (d *drilling) told(now time.Time) (level finding.Level, text string, warnings string) {
	t := d.t
	t.Helper()
	set, err := d.Settings.Get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	look := doctor.Node{Dir: d.dir, DB: d.DB, Keys: d.Keys, Drills: func(ctx context.Context) (backup.Drilled, time.Duration, error) {
		last, err := backup.LastDrill(ctx, d.Audit)
		return last, set.Backup.Drill.Std(), err
	}}
	for f, err := range look.Look(t.Context(), now) {
		if err != nil {
			t.Fatal(err)
		}
		if f.Check == "backup.drill" {
			level, text = f.Level, f.Message
		}
	}
	st, err := status.Of(t.Context(), d.Services, now)
	if err != nil {
		t.Fatal(err)
	}
	return level, text, strings.Join(st.Warnings, "\n")
}

// TestScheduledDrills has drills made as often as the settings say, by one node at a time, and told of: one that passed, one that is late, one
// that failed. What a drill left that was killed goes with the next.
func TestScheduledDrills(t *testing.T) {
	t.Parallel()
	d := newDrilling(t)
	ctx, now := t.Context(), time.Now()
	if err := d.due(ctx, now); err != nil || d.made() != 0 {
		t.Fatalf("none is wanted: %d, %v", d.made(), err)
	}
	set, err := d.Settings.Get(ctx)
	if err != nil {
		t.Fatal(err)
	}
	set.Backup.Drill = settings.Duration(24 * time.Hour)
	if _, err := d.Settings.Set(ctx, "test", *set, once.Call{}); err != nil {
		t.Fatal(err)
	}
	if level, text, warnings := d.told(now); level != finding.Warning || !strings.Contains(text, "no backup was tried yet") || !strings.Contains(warnings, text) {
		t.Errorf("before the first: %s %s; %s", level, text, warnings)
	}
	// As one that was killed leaves it: its directory, with the keys' rows in it, and nobody who has its lock.
	killed := filepath.Join(string(d.dir), "drill-killed")
	if err := os.Mkdir(killed, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(killed, "chancery.db"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	running, end := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- d.Run(running) }()
	for deadline := time.Now().Add(5 * time.Minute); d.made() == 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the loop makes no drill")
		}
	}
	end()
	if err := <-ended; err != nil {
		t.Errorf("the loop ended with %v", err)
	}
	if left := d.scratch(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if level, text, warnings := d.told(time.Now()); level != finding.OK || strings.Contains(warnings, "drill") {
		t.Errorf("after the first: %s %s; %s", level, text, warnings)
	}
	if err := d.due(ctx, time.Now()); err != nil || d.made() != 1 {
		t.Errorf("at once again: %d were made, %v", d.made(), err)
	}
	if level, text, warnings := d.told(time.Now().Add(40 * time.Hour)); level != finding.Warning || !strings.Contains(text, "wants one every") || !strings.Contains(warnings, text) {
		t.Errorf("one that is late: %s %s; %s", level, text, warnings)
	}

	tomorrow := time.Now().Add(25 * time.Hour)
	lease, ok, err := d.DB.Acquire(ctx, drillLease, "node2", drillTime)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	if err := d.due(ctx, tomorrow); err != nil || d.made() != 1 {
		t.Errorf("while another node is at it: %d were made, %v", d.made(), err)
	}
	if err := d.DB.Release(ctx, lease); err != nil {
		t.Fatal(err)
	}
	d.endedHalfWay(tomorrow)
	d.fails(tomorrow)
}

// endedHalfWay ends the node while a drill is being made: it counts as none, and the next one is made.
func (d *drilling) endedHalfWay(now time.Time) {
	t := d.t
	t.Helper()
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- d.due(ctx, now) }()
	for deadline := time.Now().Add(time.Minute); len(d.scratch()) == 0 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
	}
	begun := len(d.scratch())
	end()
	if err := <-ended; err == nil || begun != 1 || d.made() != 1 || len(d.scratch()) > 0 {
		t.Errorf("a drill that was ended: begun %d, made %d, left %v, %v", begun, d.made()-1, d.scratch(), err)
	}
	if err := d.due(t.Context(), now); err != nil || d.made() != 2 {
		t.Errorf("after it: %d were made, %v", d.made(), err)
	}
}

// fails has a key be damaged: the drill that is due finds it, and it is told until one passes.
func (d *drilling) fails(now time.Time) {
	t := d.t
	t.Helper()
	d.change(`UPDATE key_wrap SET recipient_id = 'elsewhere' WHERE recipient_id <> 'node1'`)
	now = now.Add(48 * time.Hour)
	if err := d.due(t.Context(), now); err == nil || d.made() != 3 {
		t.Fatalf("the recovery key opens nothing: %d were made, %v", d.made(), err)
	}
	if level, text, warnings := d.told(time.Now()); level != finding.Error || !strings.Contains(text, "failed: the keys of the backup are not good") || !strings.Contains(warnings, text) {
		t.Errorf("one that failed: %s %s; %s", level, text, warnings)
	}
}
