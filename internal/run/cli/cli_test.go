package cli_test

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"chancery/internal/run/cli"
	"chancery/internal/store/db"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"chancery": chancery})
}

// chancery is cmd/chancery's main but for the work of a recovery key: scripts run it as a process of its own.
func chancery() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(cli.RunQuick(ctx, os.Args[1:], cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
}

// TestScripts plays the scripts. Those in local need no node, or make their own; those in node share one that runs, and
// so keep to names of their own. The scripts in both share one of each engine.
func TestScripts(t *testing.T) {
	for _, suite := range []struct {
		name   string
		folder []string
		engine db.Dialect
		shared bool
		least  int
	}{
		{name: "local", folder: []string{"local"}, engine: db.SQLite, least: 7},
		{name: "sqlite", folder: []string{"node", "both"}, engine: db.SQLite, shared: true, least: 10},
		{name: "postgres", folder: []string{"both"}, engine: db.Postgres, shared: true, least: 7},
	} {
		if testing.Short() && suite.name != "sqlite" {
			continue // making keys and starting nodes under the race detector takes minutes, and shows it nothing new
		}
		t.Run(suite.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, suite.engine)
			if suite.shared {
				w.share()
			}
			var files []string
			for _, folder := range suite.folder {
				found, err := filepath.Glob(filepath.Join("testdata", "script", folder, "*.txtar"))
				if err != nil {
					t.Fatal(err)
				}
				files = append(files, found...)
			}
			if len(files) < suite.least {
				t.Fatalf("found %d scripts; at least %d are there", len(files), suite.least)
			}
			testscript.Run(t, testscript.Params{
				Files: files, Setup: w.setup, RequireUniqueNames: true, Cmds: w.commands(), UpdateScripts: os.Getenv("UPDATE_SCRIPTS") != "",
			})
		})
	}
}
