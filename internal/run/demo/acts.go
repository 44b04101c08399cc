package demo

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"chancery/client"
	"chancery/internal/pki/cert"
)

// pairOf reads the key and certificate that lie at paths of the host.
func (h *host) pairOf(certificate, key string) (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(h.path(certificate), h.path(key))
	return &pair, err
}

// app issues the certificate by which the application logs in to the database.
func (s *story) app(ctx context.Context) (*holder, error) {
	return s.issue(ctx, client.IssueRequest{Pool: s.hosts[2].poolName, Profile: "client", Names: &client.Names{Subject: "CN=app"}})
}

// getsIn is the chapter of good peers and rogue ones.
func (s *story) getsIn(ctx context.Context) error {
	virt, web, db := s.hosts[0], s.hosts[1], s.hosts[2]
	app, err := s.app(ctx)
	if err != nil {
		return err
	}
	own, err := virt.pairOf("/etc/pki/libvirt/clientcert.pem", "/etc/pki/libvirt/private/clientkey.pem")
	if err != nil {
		return err
	}
	// The key of the web server as an intruder has it.
	stolen, err := web.pairOf("/etc/nginx/tls/server.pem", "/etc/nginx/tls/server.key")
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(s.Out, 0, 8, 2, ' ', 0)
	for _, one := range []struct {
		to   *host
		who  string
		with *tls.Certificate
		in   bool
	}{
		{virt, "its libvirt-client certificate", own, true},
		{virt, "web1's server certificate", stolen, false},
		{db, "app, a client of its pool", &app.pair, true},
		{db, "web1's server certificate", stolen, false},
		{db, "hyper1's client certificate", own, false},
	} {
		what := "is let in"
		err := one.to.enter(ctx, one.with)
		switch {
		case one.in && err != nil:
			return fmt.Errorf("%s with %s: %w", one.to.name, one.who, err)
		case !one.in && !errors.Is(err, errRefused):
			return fmt.Errorf("%s with %s is not refused: %v", one.to.name, one.who, err)
		case !one.in:
			what = err.Error()
		}
		fmt.Fprintf(table, "  %s\t%s\t%s\n", one.to.name, one.who, what)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if err := s.virsh(ctx, virt); err != nil {
		return err
	}
	return s.notAServer(virt)
}

// virsh has libvirt's own client list the domains, where it is installed.
func (s *story) virsh(ctx context.Context, h *host) error {
	virsh, err := exec.LookPath("virsh")
	if err != nil || h.daemon.why != nil {
		return nil
	}
	pki := filepath.Join(s.dir, "virsh")
	if err := os.Mkdir(pki, 0o755); err != nil {
		return err
	}
	for name, path := range map[string]string{
		"cacert.pem": "/etc/pki/CA/cacert.pem", "clientcert.pem": "/etc/pki/libvirt/clientcert.pem",
		"clientkey.pem": "/etc/pki/libvirt/private/clientkey.pem",
	} {
		if err := os.Symlink(h.path(path), filepath.Join(pki, name)); err != nil {
			return err
		}
	}
	cmd := exec.CommandContext(ctx, virsh, "-q", "-c", s.uri(h), "list", "--name")
	cmd.Env = append(os.Environ(), "HOME="+s.dir, "XDG_RUNTIME_DIR="+s.dir, "XDG_CACHE_HOME="+s.dir, "XDG_CONFIG_HOME="+s.dir)
	out, err := cmd.CombinedOutput()
	if name := string(bytes.TrimSpace(out)); err != nil || name != "test" {
		return fmt.Errorf("virsh: %w: %s", err, name)
	}
	s.virshed = true
	s.line("virsh over TLS lists the domains of %s: test.", h.name)
	return nil
}

// uri is where virsh finds the host's libvirtd.
func (s *story) uri(h *host) string {
	return "test+tls://" + h.daemon.address + "/default?pkipath=" + filepath.Join(s.dir, "virsh")
}

// notAServer judges hyper1's client certificate as a client judges a server's: root, path and name are right.
func (s *story) notAServer(virt *host) error {
	text, err := os.ReadFile(virt.path("/etc/pki/libvirt/clientcert.pem"))
	if err != nil {
		return err
	}
	pair, err := virt.pairOf("/etc/pki/libvirt/clientcert.pem", "/etc/pki/libvirt/private/clientkey.pem")
	if err != nil {
		return err
	}
	roots, above := x509.NewCertPool(), x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(virt.pool.Root.PEM))
	above.AppendCertsFromPEM(text)
	_, err = pair.Leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: above, DNSName: virt.name, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	var unfit x509.CertificateInvalidError
	if !errors.As(err, &unfit) || unfit.Reason != x509.IncompatibleUsage {
		return fmt.Errorf("a client certificate as a server's: %v", err)
	}
	s.line("A client refuses hyper1's client certificate where a server should be: it is for clients only, critically.")
	return nil
}

// newKey is the chapter of the download that goes on.
func (s *story) newKey(ctx context.Context) error {
	const more = "shop.example"
	web := s.hosts[1]
	d, err := web.download(ctx)
	if err != nil {
		return err
	}
	defer d.close()
	if _, err := d.more(ctx, 0); err != nil {
		return err
	}
	before := d.shown
	s.line("A slow download from %s has begun, under certificate %s", web.name, short(cert.FormatSerial(before.SerialNumber)))
	began := time.Now()
	if _, err := s.api.ChangeHost(ctx, web.name, client.ChangeHostRequest{DNS: &[]string{more}}); err != nil {
		return err
	}
	after, err := until(ctx, "another certificate is served", func(ctx context.Context) (*x509.Certificate, error) {
		now, err := web.serves(ctx)
		if err == nil && now.Equal(before) {
			err = errSoon
		}
		return now, err
	})
	if err != nil {
		return err
	}
	if bytes.Equal(after.RawSubjectPublicKeyInfo, before.RawSubjectPublicKeyInfo) || !slices.Contains(after.DNSNames, more) {
		return fmt.Errorf("certificate %s has the old key, or lacks %s", cert.FormatSerial(after.SerialNumber), more)
	}
	s.line("The host gets another name, %s: its agent makes a new key, and after %s %s serves certificate %s", more,
		since(began), web.daemon.plain(), short(cert.FormatSerial(after.SerialNumber)))
	here := d.count.Load()
	last, err := d.more(ctx, here)
	if err != nil {
		return err
	}
	s.line("The download goes on over its old connection: %d octets had come, and %d more have come since.", here, last-here)
	_, err = until(ctx, "the authority knows of it", func(ctx context.Context) (*client.Host, error) {
		known, err := s.api.Host(ctx, web.name)
		if err == nil && known.Placements[0].Observed.Served != cert.FormatSerial(after.SerialNumber) {
			err = errSoon
		}
		return known, err
	})
	if err != nil {
		return err
	}
	s.line("The authority has it from the agent: placed, and seen on the live port.")
	return nil
}

// download is what takes half an hour, octet by octet.
type download struct {
	body  io.ReadCloser
	shown *x509.Certificate // by the server, when it began
	count atomic.Int64      // octets so far
	ended chan error
}

func (h *host) download(ctx context.Context) (*download, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+h.daemon.address+"/slow", nil)
	if err != nil {
		return nil, err
	}
	r.Host = h.name
	resp, err := (&http.Client{Transport: &http.Transport{TLSClientConfig: h.peer(nil), DisableKeepAlives: true}}).Do(r)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, errors.Join(fmt.Errorf("GET /slow: %s", resp.Status), resp.Body.Close())
	}
	d := &download{body: resp.Body, shown: resp.TLS.PeerCertificates[0], ended: make(chan error, 1)}
	go func() {
		_, err := io.Copy(d, d.body)
		d.ended <- err
	}()
	return d, nil
}

// Write counts.
func (d *download) Write(b []byte) (int, error) {
	d.count.Add(int64(len(b)))
	return len(b), nil
}

// more waits until there are more octets than there were.
func (d *download) more(ctx context.Context, than int64) (int64, error) {
	return until(ctx, "the download goes on", func(context.Context) (int64, error) {
		select {
		case err := <-d.ended:
			return 0, fmt.Errorf("the download broke off: %w", errors.Join(err, io.ErrUnexpectedEOF))
		default:
		}
		if now := d.count.Load(); now > than {
			return now, nil
		}
		return 0, errSoon
	})
}

func (d *download) close() { d.body.Close() }

// stolenKey is the chapter of the revocation that reaches the consumer.
func (s *story) stolenKey(ctx context.Context) error {
	db := s.hosts[2]
	app, err := s.app(ctx)
	if err != nil {
		return err
	}
	if err := db.enter(ctx, &app.pair); err != nil {
		return fmt.Errorf("app: %w", err)
	}
	s.line("app has certificate %s and is let in at %s. Its key is stolen.", short(app.issued.Serial), db.name)
	began := time.Now()
	if err := s.revoke(ctx, app); err != nil {
		return err
	}
	refusal, err := until(ctx, "the consumer refuses app", func(ctx context.Context) (error, error) {
		err := db.enter(ctx, &app.pair)
		if errors.Is(err, errRefused) {
			return err, nil
		}
		return nil, errors.Join(err, errSoon)
	})
	if err != nil {
		return err
	}
	s.line("The agent of %s placed the CRL and told %s: after %s app is %s", db.name, db.daemon.plain(), since(began),
		strings.TrimSuffix(refusal.Error(), ".")+".")
	again, err := s.app(ctx)
	if err != nil {
		return err
	}
	if err := db.enter(ctx, &again.pair); err != nil {
		return fmt.Errorf("app with a new certificate: %w", err)
	}
	s.line("With a new key and certificate, %s, app is let in again.", short(again.issued.Serial))
	return nil
}

// plain is what the consumer is called in a sentence.
func (d *daemon) plain() string {
	if d.why != nil {
		return "the stand-in"
	}
	return d.product()
}
