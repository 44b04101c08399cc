package server

import (
	"context"
	"log/slog"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// notify tells systemd a state; without systemd it does nothing.
func notify(logger *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		logger.Warn("systemd was not told", "state", state, "error", err)
	}
}

// watchdog tells systemd that the node lives, for as long as alive says so: a node whose store hangs is restarted.
func watchdog(ctx context.Context, logger *slog.Logger, alive func(context.Context) error) error {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil || interval == 0 {
		return nil // no watchdog asked for
	}
	t := time.NewTicker(interval / 3)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			check, cancel := context.WithTimeout(ctx, interval/3)
			err := alive(check)
			cancel()
			if err != nil {
				logger.Error("the node does not answer its own check", "error", err)
				continue
			}
			notify(logger, daemon.SdNotifyWatchdog)
		}
	}
}
