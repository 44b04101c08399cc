package migrate

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"chancery/internal/fault"
	"chancery/internal/store/db"
	"chancery/internal/store/move"
	"chancery/internal/store/schema"
	"chancery/internal/store/settings"

	"github.com/jackc/pgx/v5"
)

// describe is a database URL in words, without what is secret in it.
func describe(url string) (string, error) {
	if !strings.HasPrefix(url, "postgres://") && !strings.HasPrefix(url, "postgresql://") {
		return "", fault.New(fault.Invalid, `the database to move to is not named by a URL that begins with "postgres://": only PostgreSQL is moved to`)
	}
	c, err := pgx.ParseConfig(url)
	if err != nil {
		return "", fault.New(fault.Invalid, "the database URL cannot be read: %w", err) // pgx leaves the password out
	}
	var hosts []string
	add := func(host string, port uint16) {
		at := net.JoinHostPort(host, strconv.Itoa(int(port)))
		if strings.HasPrefix(host, "/") {
			at = fmt.Sprintf("%s:%d", host, port)
		}
		if !slices.Contains(hosts, at) {
			hosts = append(hosts, at)
		}
	}
	add(c.Host, c.Port)
	for _, f := range c.Fallbacks { // other hosts, and the same without TLS
		add(f.Host, f.Port)
	}
	return fmt.Sprintf("postgres://%s/%s", strings.Join(hosts, ","), c.Database), nil
}

// CheckURL refuses a URL with a secret in it, for one that comes from an argument list: every user of the machine sees those.
func CheckURL(url string) error {
	if _, err := describe(url); err != nil {
		return err
	}
	c, err := pgx.ParseConfig(url)
	if err != nil {
		return fault.New(fault.Invalid, "the database URL cannot be read: %w", err)
	}
	bare := *c
	rest, query, _ := strings.Cut(url, "?")
	_, authority, _ := strings.Cut(rest, "://")
	authority, _, _ = strings.Cut(authority, "/")
	user, _, found := strings.Cut(authority, "@")
	if found && strings.Contains(user, ":") || strings.Contains(strings.ToLower(query), "password") || bare.Password != "" && strings.Contains(url, bare.Password) {
		return fault.New(fault.Invalid, "the URL holds a password, and an argument is seen by every user of this machine").
			WithHint("change that password, write the URL into a file of mode 0600, and name it by --to-file")
	}
	return nil
}

// checkTarget refuses a database that an authority cannot be moved to. It changes nothing.
func (m *mover) checkTarget(ctx context.Context) error {
	report, err := m.target.DurabilityReport(ctx)
	if err != nil {
		return fmt.Errorf("look at %s: %w", m.done.Target, err)
	}
	if report.InRecovery {
		return fault.New(fault.Conflict, "%s is a standby: nothing can be written there", m.done.Target).
			WithHint("name the primary, or all members with target_session_attrs=read-write")
	}
	if err := m.waits(ctx, report); err != nil {
		return err
	}
	theirs, err := move.Read(ctx, m.target)
	if err != nil {
		return err
	}
	switch {
	case m.mark.State == move.Left && theirs.ID != m.mark.ID:
		return fault.New(fault.Conflict, "the authority was moved to %s on %s, and %s is not that database", m.mark.Peer,
			m.mark.Changed.UTC().Format("2006-01-02"), m.done.Target)
	case theirs.ID != "" && theirs.ID == m.mark.ID:
		return nil
	case theirs.State == move.Filling:
		return fault.New(fault.Conflict, "%s holds a part of an authority, of another move, from %s, that was not made to its end", m.done.Target, theirs.Peer).
			WithHint("end or give up that move; or drop this database, make it anew, and move into that")
	case theirs.State != "":
		return fault.New(fault.Conflict, "%s holds another authority, which was moved there from %s", m.done.Target, theirs.Peer).
			WithHint("move into an empty database")
	}
	return m.checkEmpty(ctx)
}

// waits refuses a server that has standbys and waits for none of them: what is moved there, and then left here for good, would be lost with
// that server, and a standby that lacks it would be the authority. One server without standbys loses nothing by being replaced, and
// durability=provider is the operator's word for one whose copies PostgreSQL does not know of.
func (m *mover) waits(ctx context.Context, report db.DurabilityReport) error {
	named := strings.TrimSpace(report.SynchronousStandbys) != ""
	commits := report.SynchronousCommit != "off" && report.SynchronousCommit != "local"
	if len(report.Standbys) == 0 && !named || named && commits || m.from == nil {
		return nil
	}
	set, err := m.from.Settings.Get(ctx)
	if err != nil || set.Durability == settings.Provider {
		return err
	}
	return fault.New(fault.Conflict, "%s has standbys and waits for none (synchronous_standby_names is %q, synchronous_commit is %s): what a commit "+
		"acknowledged there is lost with the primary", m.done.Target, report.SynchronousStandbys, report.SynchronousCommit).
		WithHint("have PostgreSQL name a synchronous standby, as Patroni's synchronous_mode does; or vouch for it, before the node is stopped: chancery settings set durability=provider")
}

// checkEmpty refuses a database with anything in it but tables of ours without rows, which a move that was cut short early leaves.
func (m *mover) checkEmpty(ctx context.Context) error {
	return m.target.ReadSnapshot(ctx, func(tx *db.Tx) error {
		var encoding, reads string
		var mayCreate bool
		err := tx.QueryRow(ctx, `SELECT current_setting('server_encoding'), current_setting('default_transaction_read_only'),
			COALESCE(has_schema_privilege(current_schema(), 'CREATE'), FALSE)`).Scan(&encoding, &reads, &mayCreate)
		if err != nil {
			return err
		}
		if reads == "on" {
			return fault.New(fault.Conflict, "%s only reads: default_transaction_read_only is on", m.done.Target).
				WithHint("ALTER DATABASE … RESET default_transaction_read_only, or name the primary")
		}
		if !mayCreate {
			return fault.New(fault.Denied, "the login of that URL may not make tables in %s", m.done.Target).
				WithHint("GRANT CREATE ON SCHEMA public TO it, or have it own the database")
		}
		if encoding != "UTF8" {
			return fault.New(fault.Conflict, "%s has the encoding %s, and UTF8 is wanted: names would be refused or changed", m.done.Target, encoding).
				WithHint("createdb --encoding UTF8 --template template0 NAME")
		}
		var others int64
		if err := tx.QueryRow(ctx, "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = current_schema()").Scan(&others); err != nil {
			return err
		}
		if others == 0 {
			return nil
		}
		foreign := fault.New(fault.Conflict, "%s holds tables that are none of ours", m.done.Target).WithHint("move into an empty database")
		theirs, err := db.Tables(ctx, tx)
		if err != nil {
			return foreign
		}
		ours, err := m.sourceTables(ctx)
		if err != nil {
			return err
		}
		for _, t := range theirs {
			if t.Name == versionTable {
				continue
			}
			if !move.OwnTable(t.Name) && !slices.ContainsFunc(ours, func(o db.Table) bool { return o.Name == t.Name }) {
				return foreign
			}
			n, err := t.Count(ctx, tx)
			if err != nil {
				return err
			}
			if n > 0 {
				return fault.New(fault.Conflict, "%s holds an authority already: its table %s has %d rows", m.done.Target, t.Name, n).
					WithHint("move into an empty database; two authorities are never made one")
			}
		}
		return nil
	})
}

// sameSchema wants both sides to have the tables of this very program.
func (m *mover) sameSchema(ctx context.Context) error {
	for what, d := range map[string]*db.DB{"the source": m.source, m.done.Target: m.target} {
		have, err := schema.Version(ctx, d)
		if err != nil {
			return err
		}
		if have != schema.Newest() {
			return fault.New(fault.Conflict, "%s has schema %d, and this program makes %d: another release has changed it", what, have, schema.Newest()).
				WithHint("move with the release that the node ran last")
		}
	}
	return nil
}
