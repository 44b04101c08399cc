package cluster

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the administrator's connection below
)

// What says what of a member a fault is of.
type What string

// The parts of a member.
const (
	Process What = "process" // the postmaster alone; Patroni sees to it
	Patroni What = "patroni" // Patroni alone: PostgreSQL goes on as it was, and nobody keeps its lock
	Machine What = "machine" // PostgreSQL with all its processes, Patroni and etcd
)

// Member is a machine of the cluster.
type Member struct {
	Name    string
	Dir     string
	Address string
	Link    *Link // nil on loopback addresses

	cluster *Cluster
	etcd    *program
	patroni *program
}

// Postgres is host:port of the member's PostgreSQL.
func (m *Member) Postgres() string { return m.at(PostgresPort) }

// REST is host:port of the member's Patroni.
func (m *Member) REST() string { return m.at(RESTPort) }

// Client and Peer are host:port of the member's etcd.
func (m *Member) Client() string { return m.at(ClientPort) }

// Peer is where the other etcds reach this one.
func (m *Member) Peer() string { return m.at(PeerPort) }

func (m *Member) at(port int) string { return net.JoinHostPort(m.Address, strconv.Itoa(port)) }

// Data is PostgreSQL's data directory.
func (m *Member) Data() string { return filepath.Join(m.Dir, "data") }

// URL names this member alone, whatever its role is.
func (m *Member) URL(user, database string) string {
	return fmt.Sprintf("postgres://%s@%s/%s?sslmode=disable&connect_timeout=3", user, m.Postgres(), database)
}

// Exec runs one statement as the administrator.
func (m *Member) Exec(ctx context.Context, database, query string) error {
	admin, err := m.admin(database)
	if err != nil {
		return err
	}
	defer admin.Close()
	_, err = admin.ExecContext(ctx, query)
	return err
}

// Ask runs one query as the administrator and returns what its one row has in its one column, as text.
func (m *Member) Ask(ctx context.Context, database, query string) (answer string, err error) {
	admin, err := m.admin(database)
	if err != nil {
		return "", err
	}
	defer admin.Close()
	err = admin.QueryRowContext(ctx, "SELECT CAST(("+query+") AS TEXT)").Scan(&answer)
	return answer, err
}

func (m *Member) admin(database string) (*sql.DB, error) {
	return sql.Open("pgx", m.URL("postgres", database))
}

// successor is whom this member's Patroni would have take over: the synchronous standby that is noted in etcd.
func (m *Member) successor(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	ask, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+m.REST()+"/cluster", nil)
	if err != nil {
		return "", err
	}
	answer, err := http.DefaultClient.Do(ask)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	var seen struct{ Members []struct{ Name, Role string } }
	if err := json.NewDecoder(answer.Body).Decode(&seen); err != nil {
		return "", err
	}
	for _, one := range seen.Members {
		if one.Role == "sync_standby" {
			return one.Name, nil
		}
	}
	return "", nil
}

// standby says whether the member only reads.
func (m *Member) standby(ctx context.Context) (standby bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	admin, err := m.admin("postgres")
	if err != nil {
		return false, err
	}
	defer admin.Close()
	err = admin.QueryRowContext(ctx, "SELECT pg_is_in_recovery()").Scan(&standby)
	return standby, err
}

// configure writes the member's files.
func (m *Member) configure() error {
	if err := os.Mkdir(m.Dir, 0o711); err != nil {
		return err
	}
	if err := m.cluster.own(m.Dir); err != nil {
		return err
	}
	if err := m.mountDisk(); err != nil {
		return err
	}
	text, err := plain(m.cluster, m)
	if err != nil {
		return err
	}
	for name, text := range map[string]string{"patroni.yml": text.patroni, "etcd.yml": text.etcd} {
		path := filepath.Join(m.Dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return err
		}
		if err := m.cluster.own(path); err != nil {
			return err
		}
	}
	return nil
}

// mountDisk puts a small disk under PostgreSQL's data directory, where the options want one. The watcher takes it away.
func (m *Member) mountDisk() error {
	if m.cluster.options.Disk == "" {
		return nil
	}
	if m.cluster.owner == nil {
		return errors.New("a disk for each member needs root, who may mount one")
	}
	if err := os.Mkdir(m.Data(), 0o700); err != nil {
		return err
	}
	options := fmt.Sprintf("size=%s,mode=0700,uid=%d,gid=%d", m.cluster.options.Disk, m.cluster.owner.Uid, m.cluster.owner.Gid)
	if err := syscall.Mount("tmpfs", m.Data(), "tmpfs", 0, options); err != nil {
		return fmt.Errorf("mount a disk of %s for %s: %w", m.cluster.options.Disk, m.Name, err)
	}
	return nil
}

func (m *Member) startEtcd() (err error) {
	m.etcd, err = m.run("etcd", "etcd", "--config-file", filepath.Join(m.Dir, "etcd.yml"))
	return err
}

func (m *Member) startPatroni() (err error) {
	m.patroni, err = m.run("patroni", m.cluster.launcher(), filepath.Join(m.Dir, "patroni.yml"))
	return err
}

// program is a process that the member has started.
type program struct {
	name string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // why it ended; read after done
}

// run starts a program of the member, as the cluster's user and in the member's namespace.
func (m *Member) run(name string, command ...string) (*program, error) {
	log, err := os.OpenFile(filepath.Join(m.Dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	var as *syscall.Credential
	if m.Link != nil { // ip and setpriv become the program: the process stays the same
		u := m.cluster.owner
		command = append([]string{"ip", "netns", "exec", m.Link.Namespace, "setpriv", "--reuid", strconv.Itoa(int(u.Uid)),
			"--regid", strconv.Itoa(int(u.Gid)), "--clear-groups"}, command...)
	} else {
		as = m.cluster.owner
	}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = m.Dir, log, log
	cmd.Env = append(os.Environ(), "HOME="+m.Dir, "LANG=C.UTF-8", "LC_ALL=C.UTF-8")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as, Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &program{name: name, cmd: cmd, done: make(chan struct{})}
	go func() { p.err = cmd.Wait(); close(p.done) }()
	pid := filepath.Join(m.Dir, name+".pid") // for the watcher
	if err := os.WriteFile(pid, []byte(strconv.Itoa(cmd.Process.Pid)+"\n"), 0o644); err != nil {
		return nil, errors.Join(err, cmd.Process.Kill())
	}
	return p, nil
}

// ended is an error when a program has ended that nobody killed.
func (m *Member) ended() error {
	for _, p := range []*program{m.etcd, m.patroni} {
		if p == nil {
			continue
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s of %s ended: %v", p.name, m.Name, p.err)
		default:
		}
	}
	return nil
}

// reap waits for the programs that the watcher has ended.
func (m *Member) reap() {
	for _, p := range []*program{m.etcd, m.patroni} {
		if p != nil {
			<-p.done
		}
	}
}

// Kill ends a part of the member by SIGKILL. Of a machine, nothing is left that could answer any more; with namespaces its link
// goes first, so that its peers hear nothing, as when the power fails: Restart brings it back. Patroni is not killed alone.
func (m *Member) Kill(what What) error {
	if what == Patroni {
		return errors.New("of Patroni alone only Freeze is to be had")
	}
	if what == Process {
		pid, err := m.Postmaster()
		if err != nil {
			return err
		}
		return syscall.Kill(pid, syscall.SIGKILL)
	}
	if m.Link != nil {
		if err := m.Link.Cut(); err != nil {
			return err
		}
	}
	if err := m.signal(Machine, syscall.SIGKILL); err != nil {
		return err
	}
	m.reap()
	m.etcd, m.patroni = nil, nil
	return nil
}

// Cut takes the member off the network, where it has one of its own; else it stands still, which looks the same from outside.
func (m *Member) Cut() error {
	if m.Link == nil {
		return m.Freeze(Machine)
	}
	return m.Link.Cut()
}

// Heal ends Cut.
func (m *Member) Heal() error {
	if m.Link == nil {
		return m.Thaw(Machine)
	}
	return m.Link.Heal()
}

// Local is how to reach the member's PostgreSQL by its socket, as who is cut off together with it does.
func (m *Member) Local(user, database string) string {
	return fmt.Sprintf("postgres://%s@/%s?host=%s&port=%d", user, database, m.Dir, PostgresPort)
}

// Freeze stops a part of the member by SIGSTOP: its sockets stay open and it does not answer. Process means all processes of
// PostgreSQL here.
func (m *Member) Freeze(what What) error { return m.signal(what, syscall.SIGSTOP) }

// Thaw lets what Freeze stopped go on.
func (m *Member) Thaw(what What) error { return m.signal(what, syscall.SIGCONT) }

// Restart starts Patroni and etcd again after Kill of the machine; it does not wait.
func (m *Member) Restart() error {
	if m.patroni != nil {
		return fmt.Errorf("%s runs", m.Name)
	}
	if m.Link != nil {
		if err := m.Link.Heal(); err != nil {
			return err
		}
	}
	if err := m.startEtcd(); err != nil {
		return err
	}
	return m.startPatroni()
}

// Postmaster is the process ID of PostgreSQL.
func (m *Member) Postmaster() (int, error) {
	text, err := os.ReadFile(filepath.Join(m.Data(), "postmaster.pid"))
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(line)
	if err != nil {
		return 0, err
	}
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !strings.Contains(string(args), m.Data()) {
		return 0, fmt.Errorf("PostgreSQL of %s does not run", m.Name)
	}
	return pid, nil
}

// signal signals PostgreSQL with its children and, of a machine, Patroni and etcd before.
func (m *Member) signal(what What, s syscall.Signal) error {
	var pids []int
	for _, p := range []*program{m.patroni, m.etcd} {
		if p != nil && (what == Machine || what == Patroni && p == m.patroni) {
			pids = append(pids, p.cmd.Process.Pid)
		}
	}
	postmaster, err := m.Postmaster()
	switch {
	case what == Patroni:
	case err == nil:
		children, err := stopped(postmaster)
		if err != nil {
			return err
		}
		pids = append(append(pids, children...), postmaster)
	case what == Process:
		return err
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, s); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("signal %d of %s: %w", pid, m.Name, err)
		}
	}
	return nil
}

// stopped stops a process and returns its children, so that it has no others afterwards: one that was forked meanwhile would go on
// while all else stands still.
func stopped(pid int) (children []int, err error) {
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return nil, err
	}
	for { // the signal is sent, and the process is not yet stopped
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return nil, err
		}
		_, rest, _ := strings.Cut(string(text), ") ")
		if rest == "" || strings.ContainsAny(rest[:1], "TtZX") {
			break
		}
		time.Sleep(time.Millisecond)
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil, err
	}
	for word := range strings.FieldsSeq(string(text)) {
		child, err := strconv.Atoi(word)
		if err != nil {
			return nil, err
		}
		children = append(children, child)
	}
	return children, nil
}
