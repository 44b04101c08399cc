// Package cluster starts PostgreSQL under Patroni: three members, each with a PostgreSQL, a Patroni and an etcd of its own, in a
// directory that is thrown away. Any of them can be killed, frozen, and cut off: for bench and tests.
//
// Each member has an address of its own, from 127.0.0.0/8, or from a network of namespaces (Options.Namespaces), where a member can
// lose its link. A loopback address cannot be cut off: its packets carry the sender's choice of source, so none tells which
// member sent it. Namespaces need root.
//
// The programs run as the user postgres where the caller is root, which PostgreSQL refuses. A watcher ends them by their process
// IDs when Stop is called, and also when the process that started them dies.
//
// Concurrency: the methods of Cluster and Member may be called by many goroutines, but no two for one member at a time.
package cluster

import (
	"context"
	_ "embed" // patroni-fenced
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// The ports of every member; the addresses differ. They lie below those that the kernel gives to clients.
const (
	PostgresPort = 15432
	RESTPort     = 18008 // Patroni's
	ClientPort   = 12379 // etcd's, for clients
	PeerPort     = 12380 // etcd's, for its peers
)

// Options says how the cluster shall be. The zero value is useful.
type Options struct {
	// Namespaces gives each member a network namespace, so that Cut works. It needs root.
	Namespaces bool
	// Parameters are added to PostgreSQL's, or take their place, for example max_connections.
	Parameters map[string]string
	// Disk gives each member's data directory a disk of its own of that size, such as 256m, which can be filled. It needs root.
	Disk string
}

// Cluster is a running cluster.
type Cluster struct {
	Dir     string
	Members []*Member
	Net     *Network // nil on loopback addresses

	options Options
	owner   *syscall.Credential // nil: as ourselves
	watcher *exec.Cmd
	hold    *os.File // the watcher ends everything when this closes
}

// Start starts a cluster of three and returns when it is healthy. On an error nothing of it is left.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	c := &Cluster{options: o}
	if err := c.start(ctx); err != nil {
		err = fmt.Errorf("start a database cluster: %w%s", err, c.logs())
		return nil, errors.Join(err, c.Stop())
	}
	return c, nil
}

func (c *Cluster) start(ctx context.Context) (err error) {
	for _, program := range []string{"patroni", "etcd", "setpriv"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%s is missing; `make packages` installs it: %w", program, err)
		}
	}
	if c.owner, err = owner(); err != nil {
		return err
	}
	if c.Dir, err = os.MkdirTemp("/tmp", "chancery-cluster-"); err != nil { // short: a socket's path has 107 octets at most
		return err
	}
	if err := errors.Join(c.own(c.Dir), os.Chmod(c.Dir, 0o755)); err != nil {
		return err
	}
	if err := errors.Join(os.WriteFile(c.launcher(), fenced, 0o755), os.Chmod(c.launcher(), 0o755)); err != nil {
		return err
	}
	if err := c.makeMembers(); err != nil {
		return err
	}
	if err := c.watch(); err != nil {
		return err
	}
	for _, m := range c.Members {
		if err := m.configure(); err != nil {
			return err
		}
	}
	for _, m := range c.Members {
		if err := m.startEtcd(); err != nil {
			return err
		}
	}
	for _, m := range c.Members {
		if err := m.startPatroni(); err != nil {
			return err
		}
	}
	return c.WaitHealthy(ctx)
}

// fenced starts Patroni; it is the one of deploy/patroni.
//
//go:embed patroni-fenced
var fenced []byte

func (c *Cluster) launcher() string { return filepath.Join(c.Dir, "patroni-fenced") }

func (c *Cluster) makeMembers() (err error) {
	var addresses []string
	if c.options.Namespaces {
		if c.Net, err = NewNetwork(); err != nil {
			return err
		}
	} else if addresses, err = loopback(3); err != nil {
		return err
	}
	for i := range 3 {
		m := &Member{Name: fmt.Sprintf("n%d", i+1), cluster: c}
		m.Dir = filepath.Join(c.Dir, m.Name)
		if c.Net == nil {
			m.Address = addresses[i]
		} else {
			if m.Link, err = c.Net.Join(); err != nil {
				return err
			}
			m.Address = m.Link.Address
		}
		c.Members = append(c.Members, m)
	}
	return nil
}

// watcher ends what the cluster has started when its standard input ends, and takes the directory and the namespaces away. A process
// ID is believed only while the process has the directory in its arguments.
const watcher = `
dir=$1; shift
cat >/dev/null
ours() { [ -n "$1" ] && tr '\0' ' ' <"/proc/$1/cmdline" 2>/dev/null | grep -qF "$dir/"; }
end() { ours "$2" && { kill "-$1" "$2"; kill -CONT "$2"; } 2>/dev/null; }
first() { [ -f "$1" ] && head -n 1 "$1"; }
for m in "$dir"/n*; do end KILL "$(first "$m/patroni.pid")"; end KILL "$(first "$m/etcd.pid")"; done
for m in "$dir"/n*; do
	pid=$(first "$m/data/postmaster.pid")
	end QUIT "$pid" || continue
	for c in $(cat "/proc/$pid/task/$pid/children" 2>/dev/null); do kill -CONT "$c" 2>/dev/null; done
done
for m in "$dir"/n*; do
	pid=$(first "$m/data/postmaster.pid"); n=0
	while ours "$pid" && [ $n -lt 50 ]; do sleep 0.1; n=$((n+1)); done
	end KILL "$pid"
done
for n in "$@"; do ip netns del "$n"; done 2>/dev/null
[ $# -eq 0 ] || ip link del "${1%-*}" 2>/dev/null
for m in "$dir"/n*; do umount -l "$m/data"; done 2>/dev/null
cd /; rm -rf "$dir"
`

func (c *Cluster) watch() error {
	in, out, err := os.Pipe()
	if err != nil {
		return err
	}
	defer in.Close()
	args := []string{"-c", watcher, "watcher", c.Dir}
	for _, m := range c.Members {
		if m.Link != nil {
			args = append(args, m.Link.Namespace)
		}
	}
	cmd := exec.Command("/bin/sh", args...)
	cmd.Stdin = in
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return errors.Join(err, out.Close())
	}
	c.watcher, c.hold = cmd, out
	return nil
}

// Stop ends the cluster as a crash would, and removes its directory.
func (c *Cluster) Stop() error {
	if c.watcher == nil {
		if c.Net != nil {
			c.Net.remove()
		}
		return os.RemoveAll(c.Dir)
	}
	c.hold.Close()
	err := c.watcher.Wait()
	if c.Net != nil {
		c.Net.remove()
	}
	for _, m := range c.Members {
		m.reap()
	}
	return err
}

// URL names all members, of which the one that takes writes is asked for. Make the database by Database.
func (c *Cluster) URL(user, database string) string {
	hosts := make([]string, len(c.Members))
	for i, m := range c.Members {
		hosts[i] = m.Postgres()
	}
	return fmt.Sprintf("postgres://%s@%s/%s?target_session_attrs=read-write&sslmode=disable&connect_timeout=2", user, strings.Join(hosts, ","), database)
}

// Database makes an empty database that belongs to the role chancery, and returns the URL that names all members, when all of them have
// it: a client that meets one that lacks the database asks no other.
func (c *Cluster) Database(ctx context.Context, name string) (string, error) {
	primary, err := c.Primary(ctx)
	if err != nil {
		return "", err
	}
	var exists bool
	admin, err := primary.admin("postgres")
	if err != nil {
		return "", err
	}
	defer admin.Close()
	if err := admin.QueryRowContext(ctx, "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = 'chancery')").Scan(&exists); err != nil {
		return "", err
	}
	if !exists {
		if _, err := admin.ExecContext(ctx, "CREATE ROLE chancery LOGIN"); err != nil {
			return "", err
		}
	}
	if _, err := admin.ExecContext(ctx, "CREATE DATABASE "+name+" OWNER chancery"); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, m := range c.Members {
		for {
			have, err := m.Ask(ctx, "postgres", "SELECT COUNT(*) FROM pg_database WHERE datname = '"+name+"'")
			if err == nil && have == "1" {
				break
			}
			select {
			case <-ctx.Done():
				return "", fmt.Errorf("%s has no database %s: %w", m.Name, name, errors.Join(err, ctx.Err()))
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	return c.URL("chancery", name), nil
}

// Primary is the member that takes writes now.
func (c *Cluster) Primary(ctx context.Context) (*Member, error) {
	var why []error
	for _, m := range c.Members {
		standby, err := m.standby(ctx)
		if err == nil && !standby {
			return m, nil
		}
		if err != nil {
			why = append(why, fmt.Errorf("%s: %w", m.Name, err))
		}
	}
	return nil, errors.Join(append(why, errors.New("no member takes writes"))...)
}

// Synchronous is a standby that commits wait for now.
func (c *Cluster) Synchronous(ctx context.Context) (*Member, error) {
	streaming, err := c.replication(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range c.Members {
		if s := streaming[m.Name]; s == "sync" || s == "quorum" {
			return m, nil
		}
	}
	return nil, fmt.Errorf("no standby is synchronous: %v", streaming)
}

// replication maps the standbys that stream to their sync_state.
func (c *Cluster) replication(ctx context.Context) (map[string]string, error) {
	primary, err := c.Primary(ctx)
	if err != nil {
		return nil, err
	}
	admin, err := primary.admin("postgres")
	if err != nil {
		return nil, err
	}
	defer admin.Close()
	rows, err := admin.QueryContext(ctx, "SELECT application_name, sync_state FROM pg_stat_replication WHERE state = 'streaming'")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	streaming := map[string]string{}
	for rows.Next() {
		var name, state string
		if err := rows.Scan(&name, &state); err != nil {
			return nil, err
		}
		streaming[name] = state
	}
	return streaming, rows.Err()
}

// patience bounds the waits for a cluster; two loaded cores start one in half a minute.
const patience = 2 * time.Minute

// WaitHealthy returns when one member takes writes, all others stream from it, commits wait for one of them, and Patroni has noted that one:
// a primary that is lost before that has no successor.
func (c *Cluster) WaitHealthy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := c.healthy(ctx)
		if err == nil {
			return nil
		}
		for _, m := range c.Members {
			if ended := m.ended(); ended != nil {
				return ended
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the cluster is not healthy: %w", errors.Join(err, ctx.Err()))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (c *Cluster) healthy(ctx context.Context) error {
	streaming, err := c.replication(ctx)
	if err != nil {
		return err
	}
	if len(streaming) != len(c.Members)-1 {
		return fmt.Errorf("standbys %v", streaming)
	}
	noted, err := c.Members[0].successor(ctx)
	if err == nil && streaming[noted] != "sync" && streaming[noted] != "quorum" {
		err = fmt.Errorf("the next to be promoted is %q, and standbys are %v", noted, streaming)
	}
	return err
}

// logs is the end of what the programs printed.
func (c *Cluster) logs() string {
	var b strings.Builder
	for _, m := range c.Members {
		for _, program := range []string{"etcd", "patroni"} {
			text, err := os.ReadFile(filepath.Join(m.Dir, program+".log"))
			if err != nil {
				continue
			}
			fmt.Fprintf(&b, "\n--- %s of %s\n%s", program, m.Name, text[max(0, len(text)-1500):])
		}
	}
	return b.String()
}
