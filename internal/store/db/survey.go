package db

import (
	"context"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"chancery/internal/fault"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// ConnectionsPerNode is how many connections a node may have at one server of PostgreSQL: eight of the lane and of snapshots, eight of
// Read, and two by which it asks whether the servers are there.
const ConnectionsPerNode = 18

// Server is what one server of PostgreSQL says of itself, and how the way there is.
type Server struct {
	Address string // host:port, or the socket's path
	Remote  bool   // it is neither on a socket nor on a loopback address
	Err     error  // why it did not answer; nothing else is known then

	Version    string            // 15.18
	Number     int               // server_version_num
	Standby    bool              // it is in recovery
	Settings   map[string]string // what SHOW says of those in surveyed
	Clock      time.Duration     // how far its clock is ahead of ours
	Doubt      time.Duration     // by how much Clock may be wrong
	TLS        string            // the version of TLS; empty without
	Unverified bool              // TLS is wanted, and the server's certificate is not held against a root and its name
	Role       string            // as whom we ask
	SeesAll    bool              // our role sees what others do and how standbys stand (pg_read_all_stats)
	Checksums  bool

	// Origin is where it leads: the system identifier of its cluster, which is the primary's of all its standbys, and the OID of the database;
	// empty where the server does not tell.
	System, Database string
	Started          string    // when the server was started; it tells two of one system identifier apart
	Timeline         int64     // that it writes, or that a standby receives or had last; 0 where it is not told
	Heartbeat        time.Time // the newest of the nodes' heartbeats that it shows; zero where there are none
	Asked            time.Time // when it was asked for that, by our clock

	Position int64    // bytes of log: written by a primary, replayed by a standby
	Received int64    // bytes of log that a standby has
	Receiver Receiver // of a standby

	Standbys    []Follower // of a primary
	Slots       []Slot
	Connections Connections
	Idle        int // sessions that have stood idle in a transaction for more than a minute
}

// Follower is a standby as its primary sees it. Without SeesAll, only that it is there is known.
type Follower struct {
	Name, Address string
	State         string // streaming, catchup …
	Sync          string // async, potential, sync, quorum
	Behind        time.Duration
}

// Receiver is how a standby gets its primary's log. Without SeesAll, only that there is one is known.
type Receiver struct {
	Running bool
	State   string        // streaming, waiting …
	Silent  time.Duration // since the newest message
}

// Slot is a replication slot.
type Slot struct {
	Name   string
	Active bool
	Keeps  int64  // bytes of log that it holds back
	Status string // reserved, extended, unreserved, lost
}

// Connections are the limits of a server, and what is used of them.
type Connections struct {
	Most, Reserved, Used int
	Role, Database       int // limits of our role and of our database; -1 for none
	Logins               int // roles that are connected to our database
}

// surveyed are the settings that a survey reads.
const surveyed = `'fsync', 'full_page_writes', 'synchronous_commit', 'synchronous_standby_names', 'wal_log_hints', 'wal_sender_timeout',
	'max_slot_wal_keep_size'`

// Takeover is the setting of ours by which a server says what keeps a primary that stood still from taking over again: "fenced", as
// deploy/patroni/patroni-fenced sets it, or "checked", as an administrator does whose Patroni and etcd need no fence.
const Takeover = "chancery.takeover"

// Survey asks each server that a URL of PostgreSQL names, one after the other, on connections of their own. It changes nothing.
func Survey(ctx context.Context, url string, patience time.Duration) ([]Server, error) {
	all, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, fault.New(fault.Invalid, "the database URL cannot be read: %w", err)
	}
	all.ValidateConnect = nil
	var found []Server
	for i := -1; i < len(all.Fallbacks); i++ {
		one := all.Copy()
		one.Fallbacks = nil
		if i >= 0 {
			one.Host, one.Port, one.TLSConfig = all.Fallbacks[i].Host, all.Fallbacks[i].Port, all.Fallbacks[i].TLSConfig
		}
		address := net.JoinHostPort(one.Host, strconv.Itoa(int(one.Port)))
		if len(found) > 0 && found[len(found)-1].Address == address {
			if found[len(found)-1].Err == nil {
				continue // with sslmode=prefer, each host is there with TLS and without
			}
			found = found[:len(found)-1]
		}
		found = append(found, survey(ctx, one, address, patience))
	}
	return found, nil
}

func survey(ctx context.Context, cfg *pgx.ConnConfig, address string, patience time.Duration) Server {
	s := Server{Address: address, Remote: remote(cfg.Host)}
	if t := cfg.TLSConfig; t != nil {
		s.Unverified = t.InsecureSkipVerify && t.VerifyPeerCertificate == nil && t.VerifyConnection == nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cfg.ConnectTimeout = patience
	cfg.RuntimeParams["application_name"] = "chancery doctor"
	cfg.RuntimeParams["default_transaction_read_only"] = "on"
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		s.Err = unreachable(err)
		return s
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for _, read := range []func(context.Context, *pgx.Conn) error{s.readClock, s.readSelf, s.readSettings, s.readOrigin, s.readLog, s.readFollowers, s.readSlots,
		s.readConnections, s.readHeartbeat} {
		if err := read(ctx, conn); err != nil {
			s.Err = unreachable(err)
			return s
		}
	}
	return s
}

// unreachable says why without the long way on which pgx found out.
func unreachable(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op
	}
	if unknown, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return unknown
	}
	return err
}

func remote(host string) bool {
	if host == "" || host[0] == '/' || host == "localhost" {
		return false
	}
	address := net.ParseIP(host)
	return address == nil || !address.IsLoopback()
}

func (s *Server) readClock(ctx context.Context, conn *pgx.Conn) error {
	s.Doubt = time.Hour
	for range 3 { // the quickest answer says the most
		var theirs float64
		asked := time.Now()
		if err := conn.QueryRow(ctx, "SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)").Scan(&theirs); err != nil {
			return err
		}
		if doubt := time.Since(asked) / 2; doubt < s.Doubt {
			s.Doubt = doubt
			s.Clock = time.UnixMicro(int64(theirs * 1e6)).Sub(asked.Add(doubt)).Round(time.Millisecond)
		}
	}
	return nil
}

func (s *Server) readSelf(ctx context.Context, conn *pgx.Conn) error {
	var checksums string
	var tls sql.NullString
	err := conn.QueryRow(ctx, `SELECT current_setting('server_version'), CAST(current_setting('server_version_num') AS INT), pg_is_in_recovery(),
		session_user, pg_has_role(current_user, 'pg_read_all_stats', 'USAGE'), current_setting('data_checksums'),
		(SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl)`).
		Scan(&s.Version, &s.Number, &s.Standby, &s.Role, &s.SeesAll, &checksums, &tls)
	s.Checksums, s.TLS = checksums == "on", tls.String
	return err
}

func (s *Server) readSettings(ctx context.Context, conn *pgx.Conn) error {
	// What the session was told is not the server's: reset_val is what others get.
	rows, err := conn.Query(ctx, `SELECT name, COALESCE(reset_val, ''), COALESCE(unit, '') FROM pg_settings WHERE name IN (`+surveyed+`)`)
	if err != nil {
		return err
	}
	s.Settings = map[string]string{}
	var name, value, unit string
	if _, err = pgx.ForEachRow(rows, []any{&name, &value, &unit}, func() error {
		s.Settings[name] = value + unit
		return nil
	}); err != nil {
		return err
	}
	// One that belongs to no extension is not among pg_settings.
	if err := conn.QueryRow(ctx, "SELECT COALESCE(current_setting($1, true), '')", Takeover).Scan(&value); err != nil {
		return err
	}
	s.Settings[Takeover] = value
	return nil
}

func (s *Server) readLog(ctx context.Context, conn *pgx.Conn) error {
	if !s.Standby {
		return conn.QueryRow(ctx, "SELECT CAST(pg_current_wal_flush_lsn() - '0/0' AS BIGINT)").Scan(&s.Position)
	}
	err := conn.QueryRow(ctx, `SELECT COALESCE(CAST(pg_last_wal_replay_lsn() - '0/0' AS BIGINT), 0),
		COALESCE(CAST(pg_last_wal_receive_lsn() - '0/0' AS BIGINT), 0)`).Scan(&s.Position, &s.Received)
	if err != nil {
		return err
	}
	var silent float64
	err = conn.QueryRow(ctx, `SELECT COALESCE(status, ''), COALESCE(received_tli, 0),
		COALESCE(CAST(EXTRACT(EPOCH FROM clock_timestamp() - last_msg_receipt_time) AS DOUBLE PRECISION), 0) FROM pg_stat_wal_receiver`).
		Scan(&s.Receiver.State, &s.Timeline, &silent)
	if errors.Is(err, sql.ErrNoRows) {
		return s.readLastTimeline(ctx, conn)
	}
	s.Receiver.Running, s.Receiver.Silent = err == nil, time.Duration(silent*float64(time.Second)).Round(time.Millisecond)
	return err
}

// readLastTimeline is for a standby that receives nothing.
func (s *Server) readLastTimeline(ctx context.Context, conn *pgx.Conn) error {
	err := conn.QueryRow(ctx, `SELECT timeline_id FROM pg_control_checkpoint()`).Scan(&s.Timeline)
	return unlessRefused(err)
}

// readOrigin asks where the connection leads, as those are asked at which the node reads.
func (s *Server) readOrigin(ctx context.Context, conn *pgx.Conn) error {
	o, err := originOf(ctx, conn.PgConn())
	if err != nil {
		return err
	}
	s.System, s.Database, s.Started = o.System, o.Database, o.started
	if s.Standby {
		return nil
	}
	return unlessRefused(conn.QueryRow(ctx, `SELECT CAST(('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)) AS BIT(32))::BIGINT`).Scan(&s.Timeline))
}

// readHeartbeat asks for the newest of the nodes' heartbeats. There may be no authority in the database.
func (s *Server) readHeartbeat(ctx context.Context, conn *pgx.Conn) error {
	var newest int64
	err := conn.QueryRow(ctx, `SELECT COALESCE(MAX(high_water), 0) FROM clock`).Scan(&newest)
	if s.Asked = time.Now(); err == nil && newest > 0 {
		s.Heartbeat = FromMicros(newest)
	}
	return unlessRefused(err)
}

// unlessRefused passes over what a server refuses to tell, or has not.
func unlessRefused(err error) error {
	if _, refused := errors.AsType[*pgconn.PgError](err); refused {
		return nil
	}
	return err
}

func (s *Server) readFollowers(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, `SELECT COALESCE(application_name, ''), COALESCE(host(client_addr), ''), COALESCE(state, ''), COALESCE(sync_state, ''),
		COALESCE(CAST(EXTRACT(EPOCH FROM replay_lag) AS DOUBLE PRECISION), 0) FROM pg_stat_replication ORDER BY application_name`)
	if err != nil {
		return err
	}
	var f Follower
	var behind float64
	_, err = pgx.ForEachRow(rows, []any{&f.Name, &f.Address, &f.State, &f.Sync, &behind}, func() error {
		f.Behind = time.Duration(behind * float64(time.Second)).Round(time.Millisecond)
		s.Standbys = append(s.Standbys, f)
		return nil
	})
	return err
}

func (s *Server) readSlots(ctx context.Context, conn *pgx.Conn) error {
	if s.Standby {
		return nil
	}
	rows, err := conn.Query(ctx, `SELECT slot_name, active, COALESCE(CAST(pg_current_wal_lsn() - restart_lsn AS BIGINT), 0), COALESCE(wal_status, '')
		FROM pg_replication_slots ORDER BY slot_name`)
	if err != nil {
		return err
	}
	var slot Slot
	_, err = pgx.ForEachRow(rows, []any{&slot.Name, &slot.Active, &slot.Keeps, &slot.Status}, func() error {
		s.Slots = append(s.Slots, slot)
		return nil
	})
	return err
}

func (s *Server) readConnections(ctx context.Context, conn *pgx.Conn) error {
	c := &s.Connections
	err := conn.QueryRow(ctx, `SELECT CAST(current_setting('max_connections') AS INT), CAST(current_setting('superuser_reserved_connections') AS INT),
		(SELECT COUNT(*) FROM pg_stat_activity WHERE backend_type = 'client backend' OR datname IS NOT NULL),
		(SELECT rolconnlimit FROM pg_roles WHERE rolname = session_user),
		(SELECT datconnlimit FROM pg_database WHERE datname = current_database()),
		(SELECT COUNT(DISTINCT usename) FROM pg_stat_activity WHERE datname = current_database()),
		(SELECT COUNT(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%' AND EXTRACT(EPOCH FROM clock_timestamp() - state_change) > 60)`).
		Scan(&c.Most, &c.Reserved, &c.Used, &c.Role, &c.Database, &c.Logins, &s.Idle)
	if err != nil {
		return fmt.Errorf("count the connections: %w", err)
	}
	return nil
}
