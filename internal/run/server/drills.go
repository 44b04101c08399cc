package server

import (
	"context"
	"log/slog"
	"time"

	"chancery/internal/fault"
	"chancery/internal/store/keys"
	"chancery/internal/upkeep/backup"
	"chancery/internal/upkeep/drill"
	"chancery/internal/upkeep/setup"
)

const (
	drillLook  = 10 * time.Minute // how often it is seen whether a drill is due
	drillLease = "drill"
	// drillTime is how long other nodes leave a drill to the one that began it.
	drillTime = 6 * time.Hour
)

// driller tries backups as often as the settings say, on one of the nodes.
type driller struct {
	*setup.Services
	dir     string
	key     *keys.NodeKey
	version string
	logger  *slog.Logger
}

// drills is the node's loop of them.
func (n *node) drills(ctx context.Context) error {
	key, err := keys.LoadNodeKey(n.Dir.NodeKey())
	if err != nil {
		return err
	}
	d := &driller{Services: n.services, dir: string(n.Dir), key: key, version: n.Version, logger: n.logger}
	return d.Run(ctx)
}

// Run drills when it is time.
func (d *driller) Run(ctx context.Context) error {
	return every(ctx, drillLook, func(ctx context.Context, now time.Time) {
		if err := d.due(ctx, now); err != nil && ctx.Err() == nil {
			d.logger.Error("the backup's drill failed", "error", err)
		}
	})
}

func (d *driller) due(ctx context.Context, now time.Time) error {
	set, err := d.Settings.Get(ctx)
	if err != nil || set.Backup.Drill == 0 {
		return err
	}
	last, err := backup.LastDrill(ctx, d.Audit)
	if err != nil || !last.At.IsZero() && now.Sub(last.At) < set.Backup.Drill.Std() {
		return err
	}
	lease, ok, err := d.DB.Acquire(ctx, drillLease, d.Audit.Node(), drillTime)
	if err != nil || !ok {
		return err // another node is at it
	}
	done, err := drill.Run(ctx, d.Services, drill.Options{Dir: d.dir, Node: d.key, Version: d.version})
	if err == nil {
		d.logger.Info("a backup was restored and tried", "rows", done.Rows, "keys", done.Keys, "took", done.Took)
	}
	if end := d.DB.Release(context.WithoutCancel(ctx), lease); err == nil && !fault.Is(end, fault.Conflict) {
		err = end
	}
	return err
}
