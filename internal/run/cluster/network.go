package cluster

import (
	"crypto/rand"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"syscall"
)

// Network is a bridge of this machine, with a namespace for each that joins it.
type Network struct {
	Bridge string
	prefix string // of the addresses, with the last dot
	links  []*Link
}

// Link is a namespace and its way to the others.
type Link struct {
	Namespace string
	Address   string
	outside   string // the end of the pair that is on the bridge
}

// NewNetwork makes a bridge on a range of 198.18.0.0/15, which RFC 2544 sets apart for tests. We ourselves are its address 254.
func NewNetwork() (*Network, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("network namespaces need root: run the tests that cut members off as root")
	}
	var err error
	for range 20 {
		n := &Network{}
		part, random := rand.Int(rand.Reader, big.NewInt(512))
		if random != nil {
			return nil, random
		}
		n.Bridge = fmt.Sprintf("chan%d", part)
		n.prefix = fmt.Sprintf("198.%d.%d.", 18+part.Int64()/256, part.Int64()%256)
		if err = ip("link", "add", n.Bridge, "type", "bridge"); err != nil {
			continue // somebody else has it
		}
		if err = errors.Join(ip("addr", "add", n.prefix+"254/24", "dev", n.Bridge), ip("link", "set", n.Bridge, "up")); err == nil {
			return n, nil
		}
		return nil, errors.Join(err, ip("link", "del", n.Bridge))
	}
	return nil, err
}

// Join makes a namespace with a link to the bridge.
func (n *Network) Join() (*Link, error) {
	i := len(n.links) + 1
	l := &Link{Namespace: fmt.Sprintf("%s-%d", n.Bridge, i), Address: n.prefix + strconv.Itoa(i), outside: fmt.Sprintf("%s.%d", n.Bridge, i)}
	n.links = append(n.links, l)
	return l, steps(
		[]string{"netns", "add", l.Namespace},
		[]string{"link", "add", l.outside, "type", "veth", "peer", "name", "eth0", "netns", l.Namespace},
		[]string{"link", "set", l.outside, "master", n.Bridge, "up"},
		[]string{"-n", l.Namespace, "addr", "add", l.Address + "/24", "dev", "eth0"},
		[]string{"-n", l.Namespace, "link", "set", "lo", "up"},
		[]string{"-n", l.Namespace, "link", "set", "eth0", "up"},
	)
}

// Command runs a program in the namespace; ip becomes the program, so that the process ID is the program's.
func (l *Link) Command(name string, args ...string) *exec.Cmd {
	return exec.Command("ip", append([]string{"netns", "exec", l.Namespace, name}, args...)...)
}

// Cut takes the link down: what is sent is lost, and nobody is told.
func (l *Link) Cut() error { return ip("link", "set", l.outside, "down") }

// Heal takes the link up again.
func (l *Link) Heal() error { return ip("link", "set", l.outside, "up") }

// remove takes away what the watcher has not.
func (n *Network) remove() {
	for _, l := range n.links {
		_ = ip("netns", "del", l.Namespace)
	}
	_ = ip("link", "del", n.Bridge)
}

func steps(all ...[]string) error {
	for _, args := range all {
		if err := ip(args...); err != nil {
			return err
		}
	}
	return nil
}

func ip(args ...string) error {
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// loopback picks n addresses of 127.0.0.0/8 on which nobody listens at our ports.
func loopback(n int) ([]string, error) {
	for range 100 {
		part, err := rand.Int(rand.Reader, big.NewInt(250*250))
		if err != nil {
			return nil, err
		}
		var all []string
		for i := range n {
			address := fmt.Sprintf("127.%d.%d.%d", 2+part.Int64()/250, part.Int64()%250, i+1)
			if free(address) {
				all = append(all, address)
			}
		}
		if len(all) == n {
			return all, nil
		}
	}
	return nil, errors.New("no free loopback addresses were found")
}

func free(address string) bool {
	for _, port := range []int{PostgresPort, RESTPort, ClientPort, PeerPort} {
		l, err := net.Listen("tcp", net.JoinHostPort(address, strconv.Itoa(port)))
		if err != nil {
			return false
		}
		l.Close()
	}
	return true
}

// owner is whom the programs run as; nil means as ourselves. PostgreSQL refuses root.
func owner() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("the cluster runs as the user postgres: %w", err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, err
}

func (c *Cluster) own(path string) error {
	if c.owner == nil {
		return nil
	}
	return os.Chown(path, int(c.owner.Uid), int(c.owner.Gid))
}
