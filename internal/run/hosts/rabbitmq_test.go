package hosts_test

import (
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"chancery/internal/run/consumer"
)

// A client of AMQP 0-9-1 says hello with the protocol header, and hears a method frame of channel 0 (section 4.2.2 and 4.2.3).
const (
	amqpHeader = "AMQP\x00\x00\x09\x01"
	amqpMethod = "\x01\x00\x00"
)

const rabbitRevoked = "/etc/rabbitmq/tls/crls"

// rabbitmq joins a host whose RabbitMQ is configured and does not run yet. As root it runs as its own user, and rabbitmqctl finds
// it as on any Debian: by rabbitmq-env.conf.
func (w *world) rabbitmq(t *testing.T) (*gate, *consumer.RabbitMQServer) {
	t.Helper()
	g := w.gateOn(t, "rabbitmq")
	h, in, tls := g.h, g.h.inside, "/etc/rabbitmq/tls/"
	g.cert, g.key, g.hello, g.answers = tls+"server.pem", tls+"server.key", amqpHeader, amqpMethod
	server := &consumer.RabbitMQServer{
		Address: g.address, Home: h.path("/opt/rabbitmq"), Certificate: in(g.cert), Key: in(g.key), CA: in(tls + "ca.pem"), Revoked: in(rabbitRevoked),
	}
	parameters := []string{"clients=true", "address=" + g.address}
	var as []string
	if os.Geteuid() == 0 {
		server.User = accountOf(t, "rabbitmq")
		as = []string{"setpriv", "--reuid=rabbitmq", "--regid=rabbitmq", "--clear-groups"}
		h.write("/etc/shadow", "rabbitmq:*:19000:0:99999:7:::\n") // su, by which rabbitmqctl becomes the node's user, asks whether the account has ended
	}
	must(t, server.Prepare())
	server.Home = in("/opt/rabbitmq")
	var settings strings.Builder
	for _, variable := range server.Env() {
		name, value, _ := strings.Cut(variable, "=")
		settings.WriteString("export " + name + "='" + value + "'\n")
	}
	h.write("/etc/rabbitmq/rabbitmq-env.conf", settings.String())
	if os.Geteuid() != 0 { // rabbitmqctl of Debian is for root and the node's user
		user, group := runsTests(t)
		h.write("/opt/rabbitmqctl", "#!/bin/sh\n. "+in("/etc/rabbitmq/rabbitmq-env.conf")+"\nexec "+server.Control()[0]+" \"$@\"\n")
		must(t, os.Chmod(h.path("/opt/rabbitmqctl"), 0o755))
		h.write("/etc/chancery/agent.yaml", "reads: ["+in("/opt/rabbitmqctl")+"]\n")
		parameters = append(parameters, "ctl="+in("/opt/rabbitmqctl"), "user="+user, "group="+group)
	}
	mapper, node := server.Programs()
	for _, p := range []*consumer.Program{&mapper, &node} {
		words := append(append([]string{}, as...), append([]string{p.Path}, p.Args...)...)
		p.Path, p.Args, p.User, p.Dir = words[0], words[1:], nil, ""
	}
	g.program = node
	h.start(mapper)
	h.join(order("rabbitmq", parameters...))
	return g, server
}

func accountOf(t testing.TB, name string) *syscall.Credential {
	t.Helper()
	u, err := user.Lookup(name)
	must(t, err)
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	must(t, err)
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	must(t, err)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// asksVersion has openssl shake hands as a client with a certificate, and say hello in a version of AMQP that is none: who was let in
// is told the header of the right one, and that is all (AMQP 0-9-1 section 4.2.2).
func asksVersion(g *gate, trust []byte, own *peer) *exec.Cmd {
	g.h.t.Helper()
	file := filepath.Join(g.h.t.TempDir(), "ca.pem")
	must(g.h.t, os.WriteFile(file, trust, 0o644))
	args := []string{"s_client", "-quiet", "-connect", g.address, "-servername", g.h.name, "-verify_hostname", g.h.name, "-verify_return_error", "-CAfile", file}
	if own != nil {
		args = append(args, "-cert", own.dir+"/clientcert.pem", "-cert_chain", own.dir+"/clientcert.pem", "-key", own.dir+"/clientkey.pem")
	}
	cmd := exec.Command("openssl", args...)
	cmd.Stdin = strings.NewReader("AMQP\x00\x00\x00\x00")
	return cmd
}
