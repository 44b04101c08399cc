package cli

import (
	"context"
	"strings"
	"time"

	"chancery/internal/fault"
	"chancery/internal/store/db"
	"chancery/internal/store/settings"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/doctor"
)

type doctorDatabaseCommand struct {
	DatabaseFile string        `type:"path" placeholder:"F" help:"The file (mode 0600) with the database's URL, for a machine that has no data directory."`
	Timeout      time.Duration `default:"5s" placeholder:"T" help:"How long the questions to one server may take."`
	Strict       bool          `help:"Fail for warnings, too."`
}

// Run looks at the database itself and asks no node, so that it also speaks while none runs.
func (c *doctorDatabaseCommand) Run(ctx context.Context, g *globals) error {
	if c.Timeout <= 0 || c.Timeout > 5*time.Minute {
		return usage("--timeout is more than nothing and at most 5m, and not %s", c.Timeout)
	}
	look, err := c.database(g)
	if err != nil {
		return err
	}
	look.Patience = c.Timeout
	if !strings.HasPrefix(look.URL, "sqlite:") {
		look.Durability = wantedDurability(ctx, look.URL, c.Timeout)
	}
	end := g.progress("asking the database")
	found, err := doctor.DatabaseLook(ctx, look)
	end()
	if err != nil {
		return err
	}
	return g.told(found, c.Strict)
}

func (c *doctorDatabaseCommand) database(g *globals) (look doctor.Database, err error) {
	switch {
	case c.DatabaseFile != "":
		look.URL, err = db.URLFromFile(c.DatabaseFile)
		if err == nil && !strings.HasPrefix(look.URL, "postgres://") && !strings.HasPrefix(look.URL, "postgresql://") {
			err = fault.New(fault.Invalid, `the database URL in %s does not start with "postgres://"`, c.DatabaseFile)
		}
		return look, err
	case g.Dir == "":
		return look, usage("doctor database needs --dir D or --database-file F: it looks at the database itself and asks no node")
	}
	dir := datadir.Dir(g.Dir)
	config, err := dir.Load()
	if err != nil {
		return look, err
	}
	look.URL, look.ReadURL, err = config.DatabaseURLs(dir)
	return look, err
}

// wantedDurability is what the authority wants of its commits; empty where that cannot be read, as without an authority or a primary.
func wantedDurability(ctx context.Context, url string, patience time.Duration) db.Durability {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	d, err := db.Open(ctx, db.Options{URL: url, Patience: patience, ReadConns: 1})
	if err != nil {
		return ""
	}
	defer d.Close()
	s, err := settings.New(d, nil).Get(ctx)
	if err != nil {
		return ""
	}
	return db.Durability(s.Durability)
}
