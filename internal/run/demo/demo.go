// Package demo plays the story of make demo on a throw-away authority: a certificate from a template and its revocation;
// three hosts that join, each in a pool with a root of its own; what their agents place, and what the live ports serve; who
// gets in and who does not; a new key under a live connection; and a stolen key.
//
// The node runs in this process and the agents beside it, each as a client of the node. The consumers are real ones where
// they are installed: libvirtd, nginx and PostgreSQL. Where one is not, a small TLS server of ours reads the same files, and
// the story says so. What it claims it has looked at.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/run/consumer"
	"chancery/internal/run/server"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
)

// Options say how to play.
type Options struct {
	Out     io.Writer
	Stay    bool   // go on serving until the context ends
	Version string // of the program
	// Program runs this program with the words before the arguments of Consumer, and Readable with those before the ones of
	// an agent's child; empty where the program is chancery itself.
	Program, Readable []string
	// Installed returns the version of a consumer, or why it cannot be had; nil looks at this machine.
	Installed func(ctx context.Context, program string) (version string, err error)
}

// story is what the acts hand on to each other.
type story struct {
	Options
	dir       string
	addresses server.Addresses
	api       *client.Client
	hosts     []*host
	virshed   bool // virsh was there, and listed the domains
	began     time.Time
}

// Run plays the story. It returns an error unless all was as it was told.
func Run(ctx context.Context, o Options) (err error) {
	dir, err := os.MkdirTemp("", "chancery-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.Chmod(dir, 0o711); err != nil { // PostgreSQL runs as another user where we are root
		return err
	}
	s := &story{Options: o, dir: dir, began: time.Now()}
	if err := s.settle(); err != nil {
		return err
	}
	inner, stop := context.WithCancel(ctx)
	defer stop()
	ended, err := s.open(inner)
	if err != nil {
		return err
	}
	played := make(chan error, 1)
	go func() { played <- s.play(inner) }()
	select {
	case err = <-played:
	case nodeEnded := <-ended:
		stop()
		return errors.Join(fmt.Errorf("the node ended: %w", nodeEnded), <-played, s.end())
	}
	if err == nil && o.Stay {
		s.lookNext()
		<-ctx.Done()
	}
	stop()
	return errors.Join(err, s.end(), <-ended)
}

// settle fills in how programs are found.
func (s *story) settle() error {
	if s.Installed == nil {
		s.Installed = consumer.Version
	}
	if len(s.Program) == 0 {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		s.Program = []string{self, "demo-consumer"}
	}
	s.Program = slices.Clip(s.Program) // each host appends words of its own
	return nil
}

// open makes the authority and starts its node.
func (s *story) open(ctx context.Context) (ended <-chan error, err error) {
	s.tell("Chancery's demo. All of it lies in %s and is gone at the end.", s.dir)
	public, err := consumer.FreeAddress()
	if err != nil {
		return nil, err
	}
	api, err := consumer.FreeAddress()
	if err != nil {
		return nil, err
	}
	dir := datadir.Dir(filepath.Join(s.dir, "authority"))
	if _, err := setup.Init(ctx, setup.Options{
		Dir: dir, Organization: "Demo", Address: "https://" + api, PublicURL: "http://" + public, PublicListen: public, Metrics: "127.0.0.1:0",
	}); err != nil {
		return nil, err
	}
	done, listening := make(chan error, 1), make(chan server.Addresses, 1)
	go func() {
		done <- server.Run(ctx, server.Options{
			Dir: dir, Version: s.Version, Logger: slog.New(slog.DiscardHandler), Listening: func(a server.Addresses) { listening <- a },
		})
	}()
	select {
	case err := <-done:
		return nil, fmt.Errorf("start the node: %w", err)
	case s.addresses = <-listening:
	}
	roots, err := client.RootsFile(dir.IdentityRoot())
	if err != nil {
		return nil, err
	}
	s.api, err = client.New(client.Options{
		Address: "https://" + s.addresses.API, Roots: roots, UserAgent: "chancery-demo",
		Certificate: client.CertificateFiles(dir.AdminCert(), dir.AdminKey()),
	})
	return done, err
}

// play is the story, chapter by chapter.
func (s *story) play(ctx context.Context) error {
	defer s.api.Close()
	for _, chapter := range []struct {
		title string
		play  func(context.Context) error
	}{
		{"AN AUTHORITY", s.authority},
		{"THREE HOSTS JOIN, each in a pool with a root of its own", s.join},
		{"FROM THE AUTHORITY TO THE LIVE PORT", s.placed},
		{"WHO GETS IN", s.getsIn},
		{"A NEW KEY UNDER A LIVE CONNECTION", s.newKey},
		{"A STOLEN KEY", s.stolenKey},
		{"THE BOOKS", s.proven},
	} {
		s.tell("\n%s", chapter.title)
		if err := chapter.play(ctx); err != nil {
			return fmt.Errorf("%s: %w", chapter.title, err)
		}
	}
	s.tell("\nAll was as told, in %s.", time.Since(s.began).Round(100*time.Millisecond))
	return nil
}

// end stops agents and consumers.
func (s *story) end() error {
	var wrong []error
	for _, h := range s.hosts {
		wrong = append(wrong, h.end())
	}
	return errors.Join(wrong...)
}

// proven has the node check its own store.
func (s *story) proven(ctx context.Context) error {
	var checks []string
	for f, err := range s.api.Verify(ctx, client.VerifyRequest{}) {
		if err != nil {
			return fmt.Errorf("verify: %w", err)
		}
		if f.Level == "error" {
			return fmt.Errorf("verify: %s: %s", f.Check, f.Message)
		}
		checks = append(checks, f.Check)
	}
	if len(checks) == 0 {
		return errors.New("verify looked at nothing")
	}
	s.line("The node checks its whole store as an outsider would and finds no error in")
	s.line("%s.", strings.Join(checks, ", "))
	return nil
}

// lookNext says what else there is to see while everything runs.
func (s *story) lookNext() {
	virt, web := s.hosts[0], s.hosts[1]
	s.tell("\nEverything runs until you press Ctrl-C. In another terminal:\n")
	s.line("export CHANCERY_DIR=%s PATH=%s:$PATH", filepath.Join(s.dir, "authority"), filepath.Dir(s.Program[0]))
	for _, command := range []string{
		"chancery host list", "chancery host show " + web.name, "chancery host set " + web.name + " --dns other.example",
		"chancery agent status --state " + web.state,
		"chmod 644 " + web.path("/etc/nginx/tls/server.key") + "   # and see its agent mend it within seconds",
		fmt.Sprintf("curl --cacert %s --connect-to %s:443:%s https://%[2]s/", web.trust, web.name, web.daemon.address),
	} {
		s.line("%s", command)
	}
	if s.virshed {
		s.line("virsh -c '%s' list", s.uri(virt))
	}
	for _, command := range []string{"chancery cert list", "chancery audit list", "chancery status"} {
		s.line("%s", command)
	}
}

func (s *story) tell(format string, args ...any) { fmt.Fprintf(s.Out, format+"\n", args...) }

// line is one of a chapter.
func (s *story) line(format string, args ...any) { s.tell("  "+format, args...) }
