package cli

import (
	"context"
	"errors"
	"log/slog"
	"os"

	"golang.org/x/term"

	"chancery/internal/run/server"
	"chancery/internal/upkeep/datadir"
)

type serveCommand struct{}

// Run runs a node until it is told to stop.
func (c *serveCommand) Run(ctx context.Context, g *globals) error {
	if g.Dir == "" {
		return usage("serve needs --dir D")
	}
	dir := datadir.Dir(g.Dir)
	config, err := dir.Load()
	if err != nil {
		return err
	}
	logger, end := g.logger(config.LogLevel)
	return errors.Join(server.Run(ctx, server.Options{Dir: dir, Version: version, Logger: logger}), end())
}

// logger writes lines for people on a terminal, and JSON in groups elsewhere. What it returns beside writes the last of them.
func (g *globals) logger(level string) (*slog.Logger, func() error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		l = slog.LevelInfo
	}
	o := &slog.HandlerOptions{Level: l}
	if f, ok := g.Err.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return slog.New(slog.NewTextHandler(g.Err, o)), func() error { return nil }
	}
	lines := server.NewLines(g.Err)
	return slog.New(slog.NewJSONHandler(lines, o)), lines.Close
}
