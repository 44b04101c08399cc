// Package migrate moves an authority from SQLite to PostgreSQL without loss, and can be killed at any moment.
//
// From the moment that the source is marked nothing is written to it; the process that moves it may answer meanwhile what only
// reads. Rows go over in the order of their keys, by COPY, each piece in one transaction with the record of how far its table has
// come, so a move that was cut short goes on where it was. Then both sides are compared, every row of every table, and verified as
// an outsider would; only then the source is left for good, the target opened, and node.yaml switched, in this order (see
// package move for why there are never two authorities).
//
// It copies tables through the database layer and does not know what they mean: audit chains, blobs, times and NULLs arrive as they
// were, leases with their epochs and the clock included. There are no sequences to set, since ids are made by the program.
package migrate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"chancery/internal/fault"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/move"
	"chancery/internal/store/schema"
	"chancery/internal/store/token"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
)

// Options say what to move, and where to.
type Options struct {
	Dir     datadir.Dir
	URLFile string // that holds the target's URL; node.yaml names it afterwards. A relative path is in Dir
	Rows    int    // in one piece; 0 means 4000
	Logger  *slog.Logger

	// Tell, where it is set, is told what is being done.
	Tell func(step string)
	// Answer, where it is set, answers what only reads until its context ends. That it fails does not end the move.
	Answer func(ctx context.Context, config *datadir.Config, s *setup.Services) error
}

// Done says what was moved.
type Done struct {
	Target       string        `json:"target"` // without a secret
	Tables       int           `json:"tables"`
	Rows         int64         `json:"rows"`
	Copied       int64         `json:"copied"`  // of them by this run
	Resumed      bool          `json:"resumed"` // an earlier run had been cut short
	Certificates int64         `json:"certificates"`
	Copying      time.Duration `json:"-"`
	Comparing    time.Duration `json:"-"`
	Warnings     []string      `json:"warnings"`
}

// mover is one run.
type mover struct {
	Options
	config         *datadir.Config
	key            *keys.NodeKey
	url            string
	source, target *db.DB
	from, to       *setup.Services
	tokens         *token.Tokens // that the node reaches: a key in one stays there
	mark           move.Mark     // of the source, as it is now
	done           Done
}

// Run moves the authority of o.Dir, or goes on with a move that was cut short.
func Run(ctx context.Context, o Options) (*Done, error) {
	m := &mover{Options: o}
	if m.Rows <= 0 {
		m.Rows = 4000
	}
	if m.Logger == nil {
		m.Logger = slog.New(slog.DiscardHandler)
	}
	if m.Tell == nil {
		m.Tell = func(string) {}
	}
	if err := m.open(ctx); err != nil {
		return nil, errors.Join(err, m.close())
	}
	err := m.run(ctx)
	if end := m.close(); err == nil {
		err = end
	}
	if err != nil {
		return nil, err
	}
	return &m.done, nil
}

func (m *mover) run(ctx context.Context) error {
	if m.mark.State != move.Left {
		if err := m.begin(ctx); err != nil {
			return err
		}
		if err := m.answering(ctx, m.carry); err != nil {
			return err
		}
	}
	return m.finish(ctx)
}

// open opens both sides, and looks whether they are what they must be. It changes nothing on either, but that the source gets the
// schema of this program, as it would when its node starts.
func (m *mover) open(ctx context.Context) (err error) {
	if m.config, err = m.Dir.Load(); err != nil {
		return err
	}
	if m.config.DatabaseFile != "" {
		return fault.New(fault.Conflict, "%s names %s: the authority is in PostgreSQL already", m.Dir.Config(), m.config.DatabaseFile).
			WithHint("from one PostgreSQL to another its own tools move a database; from a backup, chancery restore --database-file F")
	}
	if _, err := os.Stat(m.Dir.Database()); errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.NotFound, "there is no %s: node.yaml names no other database, and this one is gone", m.Dir.Database()).
			WithHint("chancery restore makes an authority anew from a backup")
	}
	named := datadir.Config{DatabaseFile: m.URLFile}
	if m.url, _, err = named.DatabaseURLs(m.Dir); err != nil {
		return err
	}
	if m.done.Target, err = describe(m.url); err != nil {
		return err
	}
	if m.key, err = keys.LoadNodeKey(m.Dir.NodeKey()); err != nil {
		return err
	}
	if err := m.openSource(ctx); err != nil {
		return err
	}
	return m.openTarget(ctx)
}

func (m *mover) openSource(ctx context.Context) error {
	path, err := filepath.Abs(m.Dir.Database())
	if err != nil {
		return err
	}
	m.source, err = db.Open(ctx, db.Options{URL: "sqlite:" + path, Logger: m.Logger})
	if fault.Is(err, fault.Conflict) {
		return fault.New(fault.Conflict, "%w", err).
			WithHint("stop the node first; while the move runs, chancery migrate answers in its place what only reads")
	}
	if err != nil {
		return err
	}
	if m.mark, err = move.Read(ctx, m.source); err != nil {
		return fmt.Errorf("read the mark of a move in %s: %w", path, err)
	}
	switch m.mark.State {
	case move.Left:
		return nil // nothing of it is read any more
	case move.Filling:
		return fault.New(fault.Conflict, "%s is itself being filled from %s", path, m.mark.Peer)
	}
	if err := schema.Migrate(ctx, m.source); err != nil {
		return fmt.Errorf("bring %s to this program's schema: %w", path, err)
	}
	if m.from, err = setup.Assemble(m.source, m.config.Name, m.key, m.Logger); err != nil {
		return err
	}
	tokens := m.config.TokenOptions(m.Dir)
	tokens.Logger = m.Logger
	m.tokens = token.New(tokens)
	m.from.Keys.UseTokens(m.tokens)
	return nil
}

func (m *mover) openTarget(ctx context.Context) (err error) {
	if m.target, err = db.Open(ctx, db.Options{URL: m.url, Logger: m.Logger}); err != nil {
		return fmt.Errorf("open %s: %w", m.done.Target, err)
	}
	if err := m.checkTarget(ctx); err != nil {
		return err
	}
	if m.to, err = setup.Assemble(m.target, m.config.Name, m.key, m.Logger); err == nil && m.tokens != nil {
		m.to.Keys.UseTokens(m.tokens)
	}
	return err
}

// begin marks the source, then the target. From here on nothing is written to the source.
func (m *mover) begin(ctx context.Context) error {
	now := time.Now()
	theirs, err := move.Read(ctx, m.target)
	if err != nil {
		return err
	}
	m.done.Resumed = m.mark.State == move.Leaving && theirs.ID == m.mark.ID
	if !m.done.Resumed {
		// A new id, also where an earlier move was cut short before its target was marked, or went to another: no target that
		// has the old one will ever be opened.
		mark := move.Mark{ID: db.NewID(), State: move.Leaving, Peer: m.done.Target, Changed: now}
		err := m.source.Tx(ctx, func(tx *db.Tx) error {
			if changed, err := move.Change(ctx, tx, m.mark, mark); err != nil || !changed {
				return err
			}
			return m.from.Audit.Append(ctx, tx, audit.Event{Time: now, Actor: access.System(m.config.Name).Actor(), Action: "store.leaving", Object: mark.ID,
				Detail: map[string]string{"to": m.done.Target}})
		})
		if err != nil {
			return fmt.Errorf("mark the source: %w", err)
		}
		m.mark = mark
	}
	m.source.OnlyRead(move.Leave(m.mark))
	if err := schema.Migrate(ctx, m.target); err != nil {
		return fmt.Errorf("make the tables in %s: %w", m.done.Target, err)
	}
	if err := m.sameSchema(ctx); err != nil {
		return err
	}
	mark := move.Mark{ID: m.mark.ID, State: move.Filling, Peer: "sqlite:" + m.source.Path(), Changed: now}
	err = m.retried(ctx, func() error {
		return m.target.TxAlone(ctx, func(tx *db.Tx) error {
			_, err := move.Change(ctx, tx, theirs, mark)
			return err
		})
	})
	if err != nil {
		return fmt.Errorf("mark the target: %w", err)
	}
	return nil
}

// answering runs work while o.Answer answers, and returns when both have ended: nobody may be answered from a source that is left.
func (m *mover) answering(ctx context.Context, work func(context.Context) error) error {
	if m.Answer == nil {
		return work(ctx)
	}
	inner, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- m.Answer(inner, m.config, m.from) }()
	err := work(ctx)
	early := inner.Err() == nil
	stop()
	if end := <-ended; end != nil && early && ctx.Err() == nil {
		m.done.Warnings = append(m.done.Warnings, fmt.Sprintf("nobody was answered while it was moved: %v", end))
	}
	return err
}

// carry copies and compares.
func (m *mover) carry(ctx context.Context) error {
	start := time.Now()
	m.Tell("copying to " + m.done.Target)
	tables, err := m.copyAll(ctx)
	if err != nil {
		return m.cut(err)
	}
	m.done.Copying = time.Since(start)
	start = time.Now()
	if err := m.compare(ctx, tables); err != nil {
		return m.cut(err)
	}
	m.done.Comparing = time.Since(start)
	return nil
}

// cut says how a move that did not come to its end goes on.
func (m *mover) cut(err error) error {
	hint := "the same chancery migrate goes on where this one ended; chancery migrate --give-up has the authority stay where it is"
	if f, ok := errors.AsType[*fault.Error](err); ok {
		if f.Hint != "" {
			hint = f.Hint + "; then " + hint
		}
		return fault.New(f.Kind, "%w", err).WithHint("%s", hint)
	}
	return fault.New(fault.Unavailable, "%w", err).WithHint("%s", hint)
}

// finish leaves the source, opens the target, and switches node.yaml. Each step may have been done by a run before.
func (m *mover) finish(ctx context.Context) error {
	m.Tell("switching")
	want, err := m.counts(ctx)
	if err != nil {
		return err
	}
	if m.mark.State != move.Left {
		if err := m.target.ReadSnapshot(ctx, func(tx *db.Tx) error { return m.stillThere(ctx, tx, want) }); err != nil {
			return m.cut(err)
		}
		if err := m.leave(ctx); err != nil {
			return fmt.Errorf("leave the source: %w", err)
		}
	}
	m.Tell("opening " + m.done.Target)
	err = m.openUp(ctx, want)
	if errors.Is(err, errLost) {
		// The source is as it was, but for its mark, and the target knows how far each of its tables has come: what is lost goes over once more.
		var tables []db.Table
		if tables, err = m.copyAll(ctx); err == nil {
			err = m.sameRows(ctx, tables)
		}
		if err == nil {
			err = m.openUp(ctx, want)
		}
	}
	if err != nil {
		return fmt.Errorf("open the target: %w", err)
	}
	return m.Dir.SetDatabaseFile(m.URLFile)
}

// leave marks the source as one that no node starts on again.
func (m *mover) leave(ctx context.Context) error {
	left := move.Mark{ID: m.mark.ID, State: move.Left, Peer: m.done.Target, Changed: time.Now()}
	m.source.OnlyRead(nil) // Answer has ended, and nobody else has the source
	err := m.source.TxAlone(ctx, func(tx *db.Tx) error {
		if changed, err := move.Change(ctx, tx, m.mark, left); err != nil || !changed {
			return err
		}
		return schema.Shut(ctx, tx, time.Now())
	})
	m.source.OnlyRead(move.Leave(m.mark))
	if err == nil {
		m.mark = left
	}
	return err
}

// openUp makes the target the authority, if all of it is there: both in one transaction.
func (m *mover) openUp(ctx context.Context, want map[string]int64) error {
	theirs, err := move.Read(ctx, m.target)
	if err != nil || theirs.State == move.Arrived {
		return err
	}
	arrived := move.Mark{ID: m.mark.ID, State: move.Arrived, Peer: "sqlite:" + m.source.Path(), Changed: time.Now()}
	return m.retried(ctx, func() error {
		return m.target.TxAlone(ctx, func(tx *db.Tx) error {
			// Changed only once: where an earlier try was committed after all, the mark is there, and so is the event.
			changed, err := move.Change(ctx, tx, theirs, arrived)
			if err != nil || !changed {
				return err
			}
			if err := m.stillThere(ctx, tx, want); err != nil {
				return err
			}
			return m.to.Audit.Append(ctx, tx, audit.Event{Time: arrived.Changed, Actor: access.System(m.config.Name).Actor(), Action: "store.arrived",
				Object: arrived.ID, Detail: map[string]string{"from": arrived.Peer, "to": m.done.Target}})
		})
	})
}

// retried repeats a transaction of the target whose outcome is not known. It must find out by itself that it was done already.
func (m *mover) retried(ctx context.Context, once func() error) error {
	for try := 0; ; try++ {
		err := once()
		if err == nil || !errors.Is(err, db.ErrUnknownOutcome) || try == 5 || ctx.Err() != nil {
			return err
		}
	}
}

func (m *mover) close() error {
	var errs []error
	if m.tokens != nil {
		errs = append(errs, m.tokens.Close())
	}
	for _, d := range []*db.DB{m.target, m.source} {
		if d != nil {
			errs = append(errs, d.Close())
		}
	}
	return errors.Join(errs...)
}

// GiveUp has the authority stay in SQLite after a move that was cut short. What was copied stays where it is, and never
// becomes an authority.
func GiveUp(ctx context.Context, dir datadir.Dir) (from string, err error) {
	m := &mover{Options: Options{Dir: dir, Logger: slog.New(slog.DiscardHandler)}}
	if m.config, err = dir.Load(); err != nil {
		return "", err
	}
	if m.config.DatabaseFile != "" {
		return "", fault.New(fault.Conflict, "%s names %s: the move has been made", dir.Config(), m.config.DatabaseFile)
	}
	if m.key, err = keys.LoadNodeKey(dir.NodeKey()); err != nil {
		return "", err
	}
	if err := m.openSource(ctx); err != nil {
		return "", errors.Join(err, m.close())
	}
	defer func() { err = errors.Join(err, m.close()) }()
	switch m.mark.State {
	case move.Left:
		return "", fault.New(fault.Conflict, "the move to %s has been made, and cannot be given up any more", m.mark.Peer).
			WithHint("run the same chancery migrate again: it ends what was cut short")
	case "":
		return "", fault.New(fault.Conflict, "the authority is not being moved")
	}
	err = m.source.Tx(ctx, func(tx *db.Tx) error {
		if _, err := move.Change(ctx, tx, m.mark, move.Mark{}); err != nil {
			return err
		}
		return m.from.Audit.Append(ctx, tx, audit.Event{Time: time.Now(), Actor: access.System(m.config.Name).Actor(), Action: "store.stays", Object: m.mark.ID,
			Detail: map[string]string{"not_to": m.mark.Peer}})
	})
	return m.mark.Peer, err
}
