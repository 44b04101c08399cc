package rollout

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"chancery/internal/fault"
	"chancery/internal/fleet/host"
	"chancery/internal/fleet/trust"
	"chancery/internal/store/db"
)

const columns = `id, number, pool, kind, state, backwards, stage, wave, moved_at, spec, plan, message, actor, created_at, changed_at, ended_at`

// read reads rollouts; tail is what follows FROM rollout.
func read(ctx context.Context, tx *db.Tx, tail string, args ...any) ([]*row, error) {
	rows, err := tx.Query(ctx, `SELECT `+columns+` FROM rollout `+tail, args...)
	if err != nil {
		return nil, fmt.Errorf("read rollouts: %w", err)
	}
	defer rows.Close()
	var all []*row
	for rows.Next() {
		var r row
		var backwards, moved, created, changed, ended int64
		var spec, plan string
		err := rows.Scan(&r.id, &r.number, &r.pool, &r.kind, &r.state, &backwards, &r.stage, &r.wave, &moved, &spec, &plan, &r.message, &r.actor,
			&created, &changed, &ended)
		if err != nil {
			return nil, fmt.Errorf("read rollouts: %w", err)
		}
		if err := json.Unmarshal([]byte(spec), &r.spec); err != nil {
			return nil, fmt.Errorf("read what rollout %s is to do: %w", r.id, err)
		}
		if err := json.Unmarshal([]byte(plan), &r.plan); err != nil {
			return nil, fmt.Errorf("read the plan of rollout %s: %w", r.id, err)
		}
		r.backwards, r.created, r.changed = backwards != 0, db.FromMicros(created), db.FromMicros(changed)
		if moved != 0 {
			r.moved = db.FromMicros(moved)
		}
		if ended != 0 {
			r.ended = db.FromMicros(ended)
		}
		all = append(all, &r)
	}
	return all, rows.Err()
}

// one reads the rollout with an ID; empty means the one that runs, or else the newest.
func one(ctx context.Context, tx *db.Tx, id string) (*row, error) {
	var all []*row
	var err error
	if id == "" {
		all, err = read(ctx, tx, `ORDER BY CASE WHEN ended_at = 0 THEN 0 ELSE 1 END, number DESC LIMIT 2`)
		if err == nil && len(all) == 2 && all[1].ended.IsZero() {
			return nil, fault.New(fault.Invalid, "several rollouts run; %s of pool %q and %s of pool %q are two of them", all[0].id, all[0].pool, all[1].id,
				all[1].pool).WithHint("name one: chancery rollout list")
		}
	} else {
		all, err = read(ctx, tx, `WHERE id = $1`, id)
	}
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, fault.New(fault.NotFound, "there is no rollout %.20q", id).WithHint("chancery rollout list")
	}
	return all[0], nil
}

func (r *row) insert(ctx context.Context, tx *db.Tx) error {
	err := tx.QueryRow(ctx, `SELECT COALESCE(MAX(number), 0) + 1 FROM rollout`).Scan(&r.number)
	if err != nil {
		return fmt.Errorf("number the rollout: %w", err)
	}
	r.id = strconv.FormatInt(r.number, 10)
	spec, plan, err := r.texts()
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `INSERT INTO rollout (`+columns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)`,
		r.id, r.number, r.pool, r.kind, r.state, db.Bit(r.backwards), r.stage, r.wave, db.MicrosOrZero(r.moved), spec, plan, r.message, r.actor,
		db.Micros(r.created), db.Micros(r.changed), db.MicrosOrZero(r.ended))
	if err != nil {
		return fmt.Errorf("write rollout %s: %w", r.id, err)
	}
	return nil
}

func (r *row) texts() (spec, plan string, err error) {
	a, err := json.Marshal(r.spec)
	if err != nil {
		return "", "", err
	}
	b, err := json.Marshal(r.plan)
	return string(a), string(b), err
}

func (r *row) update(ctx context.Context, tx *db.Tx, now time.Time) error {
	r.changed = now
	spec, plan, err := r.texts()
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `UPDATE rollout SET state = $1, backwards = $2, stage = $3, wave = $4, moved_at = $5, plan = $6, message = $7, changed_at = $8,
		ended_at = $9, spec = $10 WHERE id = $11`, r.state, db.Bit(r.backwards), r.stage, r.wave, db.MicrosOrZero(r.moved), plan, r.message, db.Micros(r.changed),
		db.MicrosOrZero(r.ended), spec, r.id)
	if err != nil {
		return fmt.Errorf("write rollout %s: %w", r.id, err)
	}
	return nil
}

// member is a row of rollout_host.
type member struct {
	id, name    string // of the host
	wave        int64
	moved, done bool
	failing     bool
	message     string
	because     string
	before      string // JSON of change, for a change of algorithm
}

const memberColumns = `host, name, wave, moved_at, done_at, failing, message, because, before_json`

func members(ctx context.Context, tx *db.Tx, r *row, where string, args ...any) ([]member, error) {
	rows, err := tx.Query(ctx, `SELECT `+memberColumns+` FROM rollout_host WHERE rollout = $1`+where, append([]any{r.id}, args...)...)
	if err != nil {
		return nil, fmt.Errorf("read the hosts of rollout %s: %w", r.id, err)
	}
	defer rows.Close()
	var all []member
	for rows.Next() {
		var m member
		var moved, done, failing int64
		if err := rows.Scan(&m.id, &m.name, &m.wave, &moved, &done, &failing, &m.message, &m.because, &m.before); err != nil {
			return nil, fmt.Errorf("read the hosts of rollout %s: %w", r.id, err)
		}
		m.moved, m.done, m.failing = moved != 0, done != 0, failing != 0
		all = append(all, m)
	}
	return all, rows.Err()
}

// Excepted are the hosts, by ID, that the rollout at work on a pool does not wait for.
func Excepted(ctx context.Context, tx *db.Tx, pool string) (map[string]bool, error) {
	rows, err := tx.Query(ctx, `SELECT rollout_host.host FROM rollout_host JOIN rollout ON rollout.id = rollout_host.rollout
		WHERE rollout.pool = $1 AND rollout.ended_at = 0 AND rollout_host.because <> ''`, pool)
	if err != nil {
		return nil, fmt.Errorf("read whom the rollout on pool %s does not wait for: %w", pool, err)
	}
	defer rows.Close()
	all := map[string]bool{}
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, fmt.Errorf("read whom the rollout on pool %s does not wait for: %w", pool, err)
		}
		all[id] = true
	}
	return all, rows.Err()
}

// insertRows is how many hosts are written by one statement.
const insertRows = 200

func insertMembers(ctx context.Context, tx *db.Tx, r *row, all []member) error {
	for part := range slices.Chunk(all, insertRows) {
		var rows []string
		var args []any
		for _, m := range part {
			n := len(args)
			rows = append(rows, fmt.Sprintf("($%d, $%d, $%d, $%d, 0, 0, 0, '', $%d, $%d)", n+1, n+2, n+3, n+4, n+5, n+6))
			args = append(args, r.id, m.id, m.name, m.wave, m.because, m.before)
		}
		_, err := tx.Exec(ctx, `INSERT INTO rollout_host (rollout, `+memberColumns+`) VALUES `+strings.Join(rows, ", ")+` ON CONFLICT (rollout, host) DO NOTHING`, args...)
		if err != nil {
			return fmt.Errorf("write the hosts of rollout %s: %w", r.id, err)
		}
	}
	return nil
}

// eachMember runs a statement upon hosts of the rollout, some at a time; set is what follows SET, without arguments but $1, the
// rollout, and $2.
func eachMember(ctx context.Context, tx *db.Tx, r *row, ids []string, set string, value any) error {
	for part := range slices.Chunk(ids, host.Moved) {
		args := []any{r.id, value}
		places := make([]string, len(part))
		for i, id := range part {
			args = append(args, id)
			places[i] = fmt.Sprintf("$%d", len(args))
		}
		_, err := tx.Exec(ctx, `UPDATE rollout_host SET `+set+` WHERE rollout = $1 AND host IN (`+strings.Join(places, ", ")+`)`, args...)
		if err != nil {
			return fmt.Errorf("write the hosts of rollout %s: %w", r.id, err)
		}
	}
	return nil
}

// setOut has all hosts begin the next stage.
func setOut(ctx context.Context, tx *db.Tx, r *row) error {
	_, err := tx.Exec(ctx, `UPDATE rollout_host SET moved_at = 0, done_at = 0, failing = 0, message = '' WHERE rollout = $1`, r.id)
	if err != nil {
		return fmt.Errorf("write the hosts of rollout %s: %w", r.id, err)
	}
	return nil
}

func removeMembers(ctx context.Context, tx *db.Tx, r *row, ids []string) error {
	for _, id := range ids {
		if _, err := tx.Exec(ctx, `DELETE FROM rollout_host WHERE rollout = $1 AND host = $2`, r.id, id); err != nil {
			return fmt.Errorf("write the hosts of rollout %s: %w", r.id, err)
		}
	}
	return nil
}

const (
	// keepHosts and keepRollouts are how long after its end it is known which hosts a rollout had, and the rollout itself.
	keepHosts    = 30 * 24 * time.Hour
	keepRollouts = 400 * 24 * time.Hour
)

// Prune forgets up to limit hosts of rollouts that ended long ago, and as many rollouts, and says how many of the more numerous.
// The newest one stays, since numbers grow from it. Hosts that a rollout left out, and that have come to where it led, follow their
// pool again.
func (s *Service) Prune(ctx context.Context, now time.Time, limit int) (n int64, err error) {
	issuers, err := s.CA.Issuers(ctx)
	if err != nil {
		return 0, fmt.Errorf("prune rollouts: %w", err)
	}
	err = s.DB.Tx(ctx, func(tx *db.Tx) error {
		for _, i := range issuers {
			if i.Certificate == nil || i.Root() {
				continue
			}
			if err := host.Arrived(ctx, tx, i.Name, trust.Fingerprint(i.Certificate), `SELECT pool FROM rollout WHERE ended_at = 0`); err != nil {
				return err
			}
		}
		hosts, err := tx.Exec(ctx, `DELETE FROM rollout_host WHERE (rollout, host) IN (SELECT h.rollout, h.host FROM rollout r
			JOIN rollout_host h ON h.rollout = r.id WHERE r.ended_at > 0 AND r.ended_at < $1 LIMIT $2)`, db.Micros(now.Add(-keepHosts)), int64(limit))
		if err != nil {
			return err
		}
		rollouts, err := tx.Exec(ctx, `DELETE FROM rollout WHERE id IN (SELECT id FROM rollout WHERE ended_at > 0 AND ended_at < $1
			AND number < (SELECT MAX(number) FROM rollout) ORDER BY ended_at LIMIT $2)`, db.Micros(now.Add(-keepRollouts)), int64(limit))
		n = max(hosts, rollouts)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("prune rollouts: %w", err)
	}
	return n, nil
}
