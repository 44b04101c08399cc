package doctor

import (
	"context"
	"fmt"
	"math"
	"strings"
	"time"

	"chancery/internal/store/db"
	"chancery/internal/upkeep/finding"
)

// Database is what DatabaseLook looks at.
type Database struct {
	// URL is where the node writes, ReadURL where it reads; empty where both are one.
	URL, ReadURL string
	// Durability is what the authority wants of its commits; empty where there is no authority in it yet.
	Durability db.Durability
	// Nodes is how many nodes the authority has, as far as it is known; at least as many as are connected are reckoned with.
	Nodes int
	// Patience bounds the questions to one server; 0 means 5 s.
	Patience time.Duration
}

// What is sane of a server.
const (
	behindBytes   = 16 << 20
	behindTime    = 10 * time.Second
	slotBytes     = 1 << 30
	silentTime    = 2 * time.Minute // twice the wal_sender_timeout of a server that nobody set
	senderTimeout = 10 * time.Second
	clockApart    = time.Second
	oldestRelease = 13_00_00
)

// DatabaseLook says whether what is acknowledged would survive the loss of a server, and what else of the database will hurt. It asks the servers
// themselves, so it also speaks while no node runs.
func DatabaseLook(ctx context.Context, o Database) ([]finding.Finding, error) {
	if strings.HasPrefix(o.URL, "sqlite:") {
		return lookAtSQLite(ctx, strings.TrimPrefix(o.URL, "sqlite:"))
	}
	if o.Patience <= 0 {
		o.Patience = 5 * time.Second
	}
	servers, err := db.Survey(ctx, o.URL, o.Patience)
	if err != nil {
		return nil, err
	}
	r := &databaseReport{}
	r.judge(o, servers)
	if o.ReadURL != "" {
		reads, err := db.Survey(ctx, o.ReadURL, o.Patience)
		if err != nil {
			return nil, err
		}
		r.judgeReads(reads, servers)
	}
	return r.found, nil
}

type databaseReport struct{ found []finding.Finding }

// tell adds a finding of a rule.
func (r *databaseReport) tell(rule, object, seen, message, command string) {
	f := finding.Finding{Level: finding.Error, Check: "database." + rule, Object: object, Seen: seen, Message: message, Hint: command}
	for _, known := range DatabaseRules() {
		if known.ID == f.Check {
			f.Level, f.Do = known.Level, known.Do
			if f.Message == "" {
				f.Message = known.About
			}
		}
	}
	r.found = append(r.found, f)
}

func (r *databaseReport) ok(check, object, format string, args ...any) {
	r.found = append(r.found, finding.Finding{Level: finding.OK, Check: "database." + check, Object: object, Message: fmt.Sprintf(format, args...)})
}

// judge holds the servers of one cluster against the rules.
func (r *databaseReport) judge(o Database, servers []db.Server) {
	primary := r.judgeRoles(servers)
	r.judgeClusters(servers)
	versions := map[string]bool{}
	for _, s := range servers {
		if s.Err != nil {
			continue
		}
		versions[s.Version] = true
		r.judgeServer(s)
		r.judgeConnections(s, o.Nodes)
	}
	if len(versions) > 1 {
		var seen []string
		for _, s := range servers {
			if s.Err == nil {
				seen = append(seen, s.Address+" "+s.Version)
			}
		}
		r.tell("version.mixed", "", strings.Join(seen, ", "), "", "")
	}
	if primary == nil {
		return
	}
	standbys := r.judgeStandbys(*primary, servers)
	r.judgeDurability(o.Durability, *primary, standbys)
	r.judgeSlots(*primary)
	if standbys > 0 && !primary.Checksums && primary.Settings["wal_log_hints"] != "on" {
		r.tell("rewind.impossible", primary.Address, "wal_log_hints "+primary.Settings["wal_log_hints"], "",
			"patronictl edit-config -s postgresql.parameters.wal_log_hints=on")
	}
}

// judgeRoles finds the one that takes writes.
func (r *databaseReport) judgeRoles(servers []db.Server) *db.Server {
	var primary *db.Server
	var several []string
	answered := 0
	for i, s := range servers {
		if s.Err != nil {
			r.tell("server.unreachable", s.Address, s.Err.Error(), "", "patronictl list")
			continue
		}
		answered++
		if !s.Standby {
			primary = &servers[i]
			several = append(several, s.Address)
		}
	}
	switch {
	case len(several) > 1:
		r.tell("primary.several", "", strings.Join(several, ", "), "", "patronictl list")
		return nil
	case primary == nil && answered == 0:
		r.tell("primary.none", "", fmt.Sprintf("0 of %d servers answer", len(servers)), "no server of the URL answers", "patronictl list")
	case primary == nil:
		r.tell("primary.none", "", fmt.Sprintf("%d standbys", answered), "", "patronictl list")
	case len(servers) == 1 && len(primary.Standbys) > 0:
		r.tell("primary.alone", primary.Address, fmt.Sprintf("%d standbys follow it", len(primary.Standbys)), "", "")
	default:
		r.ok("primary", primary.Address, "it takes writes; %d of %d servers answer", answered, len(servers))
	}
	return primary
}

// judgeServer judges what concerns each server by itself.
func (r *databaseReport) judgeServer(s db.Server) {
	bad := len(r.found)
	if s.Settings["fsync"] != "on" {
		r.tell("fsync.off", s.Address, "fsync "+s.Settings["fsync"], "", "patronictl edit-config -s postgresql.parameters.fsync=on")
	}
	if s.Settings["full_page_writes"] != "on" {
		r.tell("pages.off", s.Address, "full_page_writes "+s.Settings["full_page_writes"], "", "patronictl edit-config -s postgresql.parameters.full_page_writes=on")
	}
	if s.Number < oldestRelease {
		r.tell("version.old", s.Address, s.Version, "", "")
	}
	switch {
	case s.Remote && s.TLS == "":
		r.tell("tls.none", s.Address, "no TLS", "", "")
	case s.TLS != "" && s.Unverified:
		r.tell("tls.unverified", s.Address, s.TLS, "", "")
	}
	apart := time.Duration(math.Abs(float64(s.Clock))) - s.Doubt
	seen := fmt.Sprintf("it is %s ahead of ours, give or take %s", s.Clock, s.Doubt.Round(time.Millisecond))
	switch {
	case apart > db.ClockTolerance:
		r.tell("clock.wrong", s.Address, seen, "", "chronyc tracking")
	case apart > clockApart:
		r.tell("clock.differs", s.Address, seen, "", "chronyc tracking")
	}
	if s.Idle > 0 {
		r.tell("idle", s.Address, fmt.Sprintf("%d sessions", s.Idle), "",
			"SELECT pid, usename, application_name, state_change FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'")
	}
	if len(r.found) == bad {
		way := "a local connection"
		if s.TLS != "" {
			way = s.TLS
		}
		r.ok("server", s.Address, "PostgreSQL %s, %s, fsync and full_page_writes on, clock within %s", s.Version, way, max(apart, s.Doubt, time.Millisecond).Round(time.Millisecond))
	}
}

// judgeConnections reckons with as many nodes as there are, or one more than are connected where that is not known.
func (r *databaseReport) judgeConnections(s db.Server, nodes int) {
	c := s.Connections
	nodes = max(nodes, c.Logins, 1)
	most, what := c.Most-c.Reserved, "max_connections"
	for _, limit := range []struct {
		of   string
		most int
	}{{"the limit of our role", c.Role}, {"the limit of our database", c.Database}} {
		if limit.most >= 0 && limit.most < most {
			most, what = limit.most, limit.of
		}
	}
	takes := nodes * db.ConnectionsPerNode
	seen := fmt.Sprintf("%s leaves %d; %d nodes take %d at most; %d are in use", what, most, nodes, takes, c.Used)
	switch {
	case most < takes:
		r.tell("connections.few", s.Address, seen, "", fmt.Sprintf("patronictl edit-config -s postgresql.parameters.max_connections=%d", 2*takes+c.Reserved))
	case c.Used*5 > most*4:
		r.tell("connections.used", s.Address, seen, "", "")
	default:
		r.ok("connections", s.Address, "%s", seen)
	}
}

// judgeDurability says whether what is acknowledged survives the primary.
func (r *databaseReport) judgeDurability(wanted db.Durability, primary db.Server, standbys int) {
	names := strings.TrimSpace(primary.Settings["synchronous_standby_names"])
	commit := primary.Settings["synchronous_commit"]
	var synchronous []string
	for _, f := range primary.Standbys {
		if f.State == "streaming" && (f.Sync == "sync" || f.Sync == "quorum") {
			synchronous = append(synchronous, f.Name)
		}
	}
	seen := fmt.Sprintf("durability %s, synchronous_standby_names %q, synchronous_commit %s, synchronous standbys: %s",
		orNone(string(wanted)), names, commit, orNone(strings.Join(synchronous, ", ")))
	strict := "patronictl edit-config -s synchronous_mode=true -s synchronous_mode_strict=true"
	waits := names != "" && (wanted != db.Provider && wanted != "" || commit == "on" || commit == "remote_apply")
	switch {
	case wanted == db.Synchronous && names == "":
		r.tell("sync.names", primary.Address, seen, "", strict)
	case wanted == db.Provider && (commit == "off" || commit == "local" && standbys > 0 || commit == "remote_write"):
		r.tell("sync.commit", primary.Address, seen, "", "")
	case names != "" && primary.SeesAll && len(synchronous) == 0:
		r.tell("sync.missing", primary.Address, seen, "", "patronictl list")
	case standbys > 0 && !waits:
		r.tell("sync.local", primary.Address, seen, "", "chancery settings set durability=synchronous")
	case wanted == db.Provider:
		r.ok("durability", primary.Address, "it is left to the provider, whose word is taken: %s", seen)
	default:
		r.ok("durability", primary.Address, "%s", seen)
	}
	by := primary.Settings[db.Takeover]
	switch {
	case standbys == 0 && names == "":
		r.ok("failover", primary.Address, "there is no standby to fail over to; what the primary's disk loses, only a backup has")
	case !waits:
		r.tell("failover.loses", primary.Address, seen, "", strict)
	case by == "":
		r.ok("failover", primary.Address, "commits wait for a standby; nothing that was acknowledged is lost, if no other is promoted")
	default:
		r.ok("failover", primary.Address, "it would lose nothing that was acknowledged: commits wait for a standby, and Patroni promotes no other")
	}
	if waits && wanted != db.Provider && standbys > 0 && by != "fenced" && by != "checked" {
		r.tell("takeover.unfenced", primary.Address, fmt.Sprintf("%s %q", db.Takeover, by), "", "systemctl cat patroni")
	}
	timeout, err := time.ParseDuration(primary.Settings["wal_sender_timeout"])
	if waits && err == nil && (timeout == 0 || timeout > senderTimeout) {
		r.tell("sender.slow", primary.Address, "wal_sender_timeout "+timeout.String(), "", "patronictl edit-config -s postgresql.parameters.wal_sender_timeout=4s")
	}
}

// quoted is a name as SQL writes it.
func quoted(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

func orNone(text string) string {
	if text == "" {
		return "none"
	}
	return text
}

func bytes(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d bytes", n)
}
