package loop

import (
	"context"
	"errors"
	"log/slog"
	"os"

	"chancery/internal/agent/place"
	"chancery/internal/agent/probe"
)

// Repair ends what a crash left in the middle on the state directory that the options name, from its settings and journal
// alone. It reads neither agent.yaml nor the identity, so that a mistake in either does not let a consumer start on half of
// a placement: what is in a journal was held against what the host accepts before it was written.
func Repair(ctx context.Context, o Options) (mended []string, err error) {
	state, err := OpenState(o.State, o.Cut)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, state.Close()) }()
	settled, err := state.settings()
	if err != nil {
		return nil, err
	}
	log := o.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	placer, err := place.New(place.Options{
		State: state.path(dirJournal), System: probe.System{Root: settled.Root, AsRoot: os.Geteuid() == 0, Self: o.Self}, Log: log, Cut: o.CutFiles,
	})
	if err != nil {
		return nil, err
	}
	defer placer.Close()
	return placer.Repair(ctx)
}
