package consumer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// RabbitMQServer is a node of RabbitMQ of ours with a port for TLS and none without, and where its files are. It has a home, a
// database, a cookie and a port mapper (epmd) of its own, on loopback, so that it meets no other node.
type RabbitMQServer struct {
	Address string // host:port of AMQP over TLS
	Home    string // a directory that is the node's own
	// Files as Erlang names them; Revoked is the directory of CRLs, and none are asked for where it is empty.
	Certificate, Key, CA, Revoked string
	User                          *syscall.Credential // who runs it; the caller where it is nil
	mapper, distribution          string              // ports
}

// rabbitPrograms is where Debian keeps the programs that its own wrappers call.
const rabbitPrograms = "/usr/lib/rabbitmq/bin/"

// Prepare makes the files of Home and takes ports for it.
func (s *RabbitMQServer) Prepare() error {
	for _, port := range []*string{&s.mapper, &s.distribution} {
		free, err := FreeAddress()
		if err != nil {
			return err
		}
		_, *port, _ = strings.Cut(free, ":")
	}
	host, port, _ := strings.Cut(s.Address, ":")
	options := fmt.Sprintf(`{cacertfile, %q}, {certfile, %q}, {keyfile, %q}, {versions, ['tlsv1.3', 'tlsv1.2']}, {verify, verify_peer}, {fail_if_no_peer_cert, true}`,
		s.CA, s.Certificate, s.Key)
	if s.Revoked != "" {
		options += fmt.Sprintf(`, {crl_check, true}, {crl_cache, {ssl_crl_hash_dir, {internal, [{dir, %q}]}}}`, s.Revoked)
	}
	files := map[string]string{
		// Ten seconds for the first words of AMQP, the default, are few for what goes on beside.
		"rabbitmq.conf": fmt.Sprintf("listeners.tcp = none\nlisteners.ssl.default = %s:%s\nhandshake_timeout = 120000\nssl_handshake_timeout = 60000\n"+
			"log.console = true\nlog.file = false\n", host, port),
		"advanced.config": "[{rabbit, [{ssl_options, [" + options + "]}]}].\n",
		"enabled_plugins": "[].\n", "env.conf": "",
		".erlang.cookie": "only-for-" + strconv.Itoa(os.Getpid()) + "-" + s.mapper,
	}
	err := os.MkdirAll(s.Home, 0o700)
	for name, text := range files {
		path := filepath.Join(s.Home, name)
		err = errors.Join(err, os.WriteFile(path, []byte(text), 0o400), s.own(path))
	}
	return errors.Join(err, s.own(s.Home))
}

func (s *RabbitMQServer) own(path string) error {
	if s.User == nil {
		return nil
	}
	return os.Chown(path, int(s.User.Uid), int(s.User.Gid))
}

// Env is the environment of its programs, rabbitmqctl's too.
func (s *RabbitMQServer) Env() []string {
	in := func(name string) string { return filepath.Join(s.Home, name) }
	return []string{
		"HOME=" + s.Home, "RABBITMQ_NODENAME=rabbit@localhost", "RABBITMQ_MNESIA_BASE=" + in("mnesia"), "RABBITMQ_LOG_BASE=" + in("log"), "RABBITMQ_LOGS=-",
		"RABBITMQ_CONFIG_FILE=" + in("rabbitmq.conf"), "RABBITMQ_ADVANCED_CONFIG_FILE=" + in("advanced.config"),
		"RABBITMQ_ENABLED_PLUGINS_FILE=" + in("enabled_plugins"), "RABBITMQ_CONF_ENV_FILE=" + in("env.conf"), "RABBITMQ_GENERATED_CONFIG_DIR=" + in("generated"),
		"ERL_EPMD_ADDRESS=127.0.0.1", "ERL_EPMD_PORT=" + s.mapper, "RABBITMQ_DIST_PORT=" + s.distribution,
		"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-kernel inet_dist_use_interface {127,0,0,1}", "ERL_CRASH_DUMP=/dev/null",
		"RUNNING_UNDER_SYSTEMD=true", // the script becomes the node, so that its number is the node's
	}
}

// Programs are the port mapper, which goes first, and the node.
func (s *RabbitMQServer) Programs() (mapper, node Program) {
	mapper = Program{Path: "epmd", Args: []string{"-address", "127.0.0.1", "-port", s.mapper}, User: s.User, Ready: Listening("127.0.0.1:" + s.mapper)}
	return mapper, Program{Path: rabbitPrograms + "rabbitmq-server", Dir: s.Home, Env: s.Env(), User: s.User, Ready: Listening(s.Address)}
}

// Control is the command by which the node is told something, with Env.
func (s *RabbitMQServer) Control(words ...string) []string {
	return append([]string{rabbitPrograms + "rabbitmqctl", "-q"}, words...)
}

// RabbitMQ is a node of our own.
type RabbitMQ struct {
	*Process
	Server *RabbitMQServer
	mapper *Process
}

// StartRabbitMQ starts a node as the caller in a new directory below dir, on free ports.
func StartRabbitMQ(ctx context.Context, dir string, s RabbitMQServer) (*RabbitMQ, error) {
	home, err := os.MkdirTemp(dir, "rabbit")
	if err != nil {
		return nil, err
	}
	s.Home = home
	if s.Address, err = FreeAddress(); err != nil {
		return nil, err
	}
	if err := s.Prepare(); err != nil {
		return nil, err
	}
	r := &RabbitMQ{Server: &s}
	mapper, node := s.Programs()
	if r.mapper, err = Start(ctx, mapper); err != nil {
		return nil, err
	}
	if r.Process, err = Start(ctx, node); err != nil {
		return nil, errors.Join(err, r.mapper.Stop())
	}
	return r, nil
}

// Reload has the node read its files again.
func (r *RabbitMQ) Reload(ctx context.Context) error {
	words := r.Server.Control("eval", "ssl:clear_pem_cache().")
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.Env = append(os.Environ(), r.Server.Env()...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("rabbitmqctl: %w: %s", err, out)
	}
	return nil
}

// Stop ends the node and its port mapper.
func (r *RabbitMQ) Stop() error { return errors.Join(r.Process.Stop(), r.mapper.Stop()) }
