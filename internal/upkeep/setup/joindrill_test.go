package setup_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/run/server"
	"chancery/internal/store/audit"
	"chancery/internal/store/keys"
	"chancery/internal/store/once"
	"chancery/internal/store/settings"
	"chancery/internal/upkeep/backup"
	"chancery/internal/upkeep/drill"
	"chancery/internal/upkeep/setup"
)

// TestDrillOnANodeThatJoined has a node that joined, which has endorsed nobody and goes by signed lists alone, try backups: because it is
// due, and by hand beside the node.
func TestDrillOnANodeThatJoined(t *testing.T) {
	t.Parallel()
	s, ctx := newServed(t), t.Context()
	o := s.joining(t, "n2", s.approving(t, "n2"))
	o.Listen, o.Public, o.Metrics = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	if _, err := setup.Join(ctx, o); err != nil {
		t.Fatal(err)
	}
	now, err := s.Settings.Get(ctx)
	if err != nil {
		t.Fatal(err)
	}
	// The first node has looked whether one is due when it began, and looks again in ten minutes.
	next, err := now.WithAll([]settings.Field{{Path: "backup.drill", Value: "7d"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Settings.Set(ctx, "test", *next, once.Call{}); err != nil {
		t.Fatal(err)
	}
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		ended <- server.Run(running, server.Options{Dir: o.Dir, Logger: slog.New(slog.DiscardHandler)})
	}()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("the node ended: %v", err)
		}
	})
	var page audit.Page
	for end := time.Now().Add(5 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if page, err = s.Audit.Search(ctx, audit.Filter{Action: backup.DrillAction}, "", 10); err != nil {
			t.Fatal(err)
		}
		if len(page.Events) > 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("no drill was made")
		}
	}
	var scheduled backup.Drilled
	detail, err := json.Marshal(page.Events[0].Detail)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(detail, &scheduled); err != nil || page.Events[0].Node != "n2" || scheduled.Failed != "" || scheduled.Rows == 0 {
		t.Errorf("the drill that was due: %+v, %v", page.Events[0], err)
	}
	key, err := keys.LoadNodeKey(o.Dir.NodeKey())
	if err != nil {
		t.Fatal(err)
	}
	done, err := drill.Run(ctx, open(t, o.Dir), drill.Options{Dir: string(o.Dir), Node: key, Version: "test"})
	if err != nil || done.Issuers < 2 || done.Keys < done.Issuers {
		t.Errorf("a drill by hand: %+v, %v", done, err)
	}
}

// approving is who approves at once.
func (s *served) approving(t *testing.T, name string) func(string) {
	return func(fingerprint string) {
		if _, err := s.Clones.Approve(t.Context(), officer, name, client.CloneApproval{Fingerprint: fingerprint}); err != nil {
			t.Error(err)
		}
	}
}
