package cli

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
	"chancery/internal/run/server"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/migrate"
	"chancery/internal/upkeep/setup"
)

type migrateCommand struct {
	To     string `placeholder:"postgres://…" help:"URL of an empty PostgreSQL database, without a password."`
	ToFile string `type:"path" placeholder:"F" help:"File (mode 0600) that holds the URL; node.yaml names it afterwards."`
	GiveUp bool   `help:"Have the authority stay where it is, after a move that was cut short."`
}

// Run moves the authority of --dir, whose node must be stopped: it answers in its place what only reads.
func (c *migrateCommand) Run(ctx context.Context, g *globals) error {
	given := 0
	for _, one := range []bool{c.To != "", c.ToFile != "", c.GiveUp} {
		if one {
			given++
		}
	}
	switch {
	case g.Dir == "":
		return usage("migrate needs --dir D: it works where the node is")
	case given != 1:
		return usage("migrate takes one of --to URL, --to-file F and --give-up")
	case c.GiveUp:
		return c.giveUp(ctx, g)
	}
	dir := datadir.Dir(g.Dir)
	file, err := c.urlFile(dir)
	if err != nil {
		return err
	}
	// The node's log goes on where it always goes; what is done is for the operator.
	logger, end := g.logger("error")
	start := time.Now()
	done, err := migrate.Run(ctx, migrate.Options{
		Dir: dir, URLFile: file, Logger: logger, Tell: func(step string) { g.say("%s", step) },
		Answer: func(ctx context.Context, config *datadir.Config, s *setup.Services) error {
			return server.Answer(ctx, server.Options{Dir: dir, Version: version, Logger: slog.New(slog.DiscardHandler)}, config, s)
		},
	})
	if closed := end(); err == nil {
		err = closed
	}
	if err != nil {
		return err
	}
	return c.tell(g, done, time.Since(start))
}

// urlFile is the file that node.yaml will name. A URL of the command line, which has no secret in it, is written into the data
// directory.
func (c *migrateCommand) urlFile(dir datadir.Dir) (string, error) {
	if c.ToFile != "" {
		return filepath.Abs(c.ToFile)
	}
	if err := migrate.CheckURL(c.To); err != nil {
		return "", err
	}
	if _, err := dir.Load(); err != nil {
		return "", err
	}
	const name = "database-url"
	file := filepath.Join(string(dir), name)
	text := []byte(c.To + "\n")
	if there, err := os.ReadFile(file); err == nil {
		if string(there) != string(text) {
			return "", fault.New(fault.Conflict, "%s is there already and holds another URL", file).WithHint("name it, or another, by --to-file")
		}
		return name, nil
	}
	return name, keyfile.WriteFile(file, text, 0o600)
}

func (c *migrateCommand) giveUp(ctx context.Context, g *globals) error {
	to, err := migrate.GiveUp(ctx, datadir.Dir(g.Dir))
	if err != nil {
		return err
	}
	if g.Output == "json" {
		return g.json(map[string]any{"not_moved_to": to})
	}
	_, err = fmt.Fprintf(g.Out, "The authority stays in %s. What is in %s already never becomes one: drop that database.\n\nNext: chancery serve --dir %s\n",
		datadir.Dir(g.Dir).Database(), to, g.Dir)
	return err
}

func (c *migrateCommand) tell(g *globals, d *migrate.Done, took time.Duration) error {
	if g.Output == "json" {
		return g.json(struct {
			*migrate.Done
			Copying   int64 `json:"copying_ms"`
			Comparing int64 `json:"comparing_ms"`
		}{d, d.Copying.Milliseconds(), d.Comparing.Milliseconds()})
	}
	again := ""
	if d.Resumed {
		again = fmt.Sprintf(" (%d of them by this run)", d.Copied)
	}
	fmt.Fprintf(g.Out, "The authority is in %s: %d tables, %d rows%s, %d certificates.\n", d.Target, d.Tables, d.Rows, again, d.Certificates)
	fmt.Fprintf(g.Out, "Copied in %s, compared and verified in %s, all in %s.\n", d.Copying.Round(time.Millisecond), d.Comparing.Round(time.Millisecond),
		took.Round(time.Millisecond))
	for _, w := range d.Warnings {
		fmt.Fprintln(g.Out, "warning:", printable(w))
	}
	dir := datadir.Dir(g.Dir)
	_, err := fmt.Fprintf(g.Out, "%s names the new database. %s is kept, and no node starts on it again.\n\nNext: chancery serve --dir %s\n",
		dir.Config(), dir.Database(), g.Dir)
	return err
}
