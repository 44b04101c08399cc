// Package prober keeps opening verified connections between all pairs of a set of hosts, both sides with certificates and
// CRLs, and counts those that fail: while trust and certificates are changed below it, the count is to stay at zero.
//
// Both sides are strict relying parties of the standard library's making: crypto/x509 and crypto/tls judge paths, names and
// usages, and a CRL is demanded for every issuer of a path. They read the files that an agent places, each time anew, so
// that what is on the disk at any instant is what counts.
package prober

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Files are what a host's consumer reads. Pair holds the key and the certification path, in one file: apart, whoever reads
// at each connection could meet the new one of the one and the old one of the other.
type Files struct {
	Pair  string
	Trust string // PEM: anchors, and issuers below them
	CRLs  string // PEM
}

// stamp tells whether a file is the same as when it was last read: agents rename a new file over the old one.
type stamp struct {
	inode uint64
	size  int64
	at    time.Time
}

// file is a file with what was read from it.
type file[T any] struct {
	mu    sync.Mutex
	stamp stamp
	value T
}

// read returns what is in a file, parsed anew when it is another than the last time.
func (f *file[T]) read(path string, parse func([]byte) (T, error)) (T, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	st, err := os.Stat(path)
	if err != nil {
		return f.value, err
	}
	now := stamp{inode: st.Sys().(*syscall.Stat_t).Ino, size: st.Size(), at: st.ModTime()}
	if f.stamp == now {
		return f.value, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return f.value, err
	}
	value, err := parse(text)
	if err != nil {
		return f.value, fmt.Errorf("%s: %w", path, err)
	}
	f.stamp, f.value = now, value
	return value, nil
}

// Consumer is a host's software: a server that demands certificates, and the client that visits the others.
type Consumer struct {
	Name    string // as its certificate has it
	Address string // where it listens
	files   Files

	pair  file[*tls.Certificate]
	trust file[*trust]
	crls  file[*lists]

	listener net.Listener
	all      sync.WaitGroup
}

type trust struct {
	roots, intermediates *x509.CertPool
}

// lists are the CRLs of a file. Whose signature one has does not change while the file is the same, and is found out once.
type lists struct {
	all    []*x509.RevocationList
	signed sync.Map // signature: bool
}

// signature is that of a list by an issuer.
type signature struct {
	list   *x509.RevocationList
	issuer string // its certificate
}

func (l *lists) isBy(list *x509.RevocationList, issuer *x509.Certificate) bool {
	asked := signature{list: list, issuer: string(issuer.Raw)}
	if known, ok := l.signed.Load(asked); ok {
		return known.(bool)
	}
	good := list.CheckSignatureFrom(issuer) == nil
	l.signed.Store(asked, good)
	return good
}

// Serve starts a consumer on an address of the loopback interface. Until its files are there it refuses all who come.
func Serve(name, address string, files Files) (*Consumer, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	c := &Consumer{Name: name, Address: listener.Addr().String(), files: files, listener: listener}
	c.all.Go(c.serve)
	return c, nil
}

// Close ends it, and returns when all of its connections have.
func (c *Consumer) Close() error {
	err := c.listener.Close()
	c.all.Wait()
	return err
}

// Ready reports why a consumer cannot work yet; nil when all its files can be read.
func (c *Consumer) Ready() error {
	_, err := c.config()
	if err == nil {
		_, err = c.crls.read(c.files.CRLs, parseCRLs)
	}
	return err
}

// Serial is that of the certificate which it presents now; empty where there is none.
func (c *Consumer) Serial() string {
	pair, err := c.pair.read(c.files.Pair, parsePair)
	if err != nil || pair == nil {
		return ""
	}
	return fmt.Sprintf("%x", pair.Leaf.SerialNumber)
}

func parsePair(text []byte) (*tls.Certificate, error) {
	pair, err := tls.X509KeyPair(text, text)
	return &pair, err
}

func parseTrust(text []byte) (*trust, error) {
	t := &trust{roots: x509.NewCertPool(), intermediates: x509.NewCertPool()}
	n := 0
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		if time.Now().After(c.NotAfter) { // libvirtd would not start with it
			return nil, fmt.Errorf("%s ended on %s", c.Subject, c.NotAfter)
		}
		if n++; c.CheckSignatureFrom(c) == nil {
			t.roots.AddCert(c)
		} else {
			t.intermediates.AddCert(c)
		}
	}
	if n == 0 {
		return nil, errors.New("it holds no certificate")
	}
	return t, nil
}

func parseCRLs(text []byte) (*lists, error) {
	l := &lists{}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		list, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			return nil, err
		}
		l.all = append(l.all, list)
	}
	return l, nil
}

// config is what both sides of a connection use at this instant.
func (c *Consumer) config() (*tls.Config, error) {
	pair, err := c.pair.read(c.files.Pair, parsePair)
	if err != nil {
		return nil, err
	}
	t, err := c.trust.read(c.files.Trust, parseTrust)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		Certificates: []tls.Certificate{*pair}, RootCAs: t.roots, ClientCAs: t.roots, ClientAuth: tls.RequireAndVerifyClientCert,
		SessionTicketsDisabled: true, CurvePreferences: []tls.CurveID{tls.X25519}, // the exchange of keys is not what is looked at
		VerifyConnection: func(s tls.ConnectionState) error {
			return c.checkRevocation(s.VerifiedChains, time.Now())
		},
	}, nil
}

// checkRevocation wants, for one of the verified paths, a current CRL of each issuer that does not list what is below it.
func (c *Consumer) checkRevocation(paths [][]*x509.Certificate, now time.Time) error {
	crls, err := c.crls.read(c.files.CRLs, parseCRLs)
	if err != nil {
		return err
	}
	err = errors.New("there is no verified path")
	for _, path := range paths {
		if err = checkPath(path, crls, now); err == nil {
			return nil
		}
	}
	return err
}

func checkPath(path []*x509.Certificate, crls *lists, now time.Time) error {
	for i := 0; i+1 < len(path); i++ {
		var found *x509.RevocationList
		for _, l := range crls.all {
			if string(l.RawIssuer) == string(path[i+1].RawSubject) && crls.isBy(l, path[i+1]) {
				found = l
			}
		}
		if found == nil {
			return fmt.Errorf("there is no CRL of %s", path[i+1].Subject)
		}
		if now.After(found.NextUpdate) {
			return fmt.Errorf("the CRL of %s ended on %s", path[i+1].Subject, found.NextUpdate)
		}
		for _, e := range found.RevokedCertificateEntries {
			if e.SerialNumber.Cmp(path[i].SerialNumber) == 0 {
				return fmt.Errorf("certificate %x of %s is revoked", path[i].SerialNumber, path[i].Subject)
			}
		}
	}
	return nil
}

const patience = 20 * time.Second

func (c *Consumer) serve() {
	for {
		conn, err := c.listener.Accept()
		if err != nil {
			return
		}
		c.all.Go(func() {
			defer conn.Close()
			config, err := c.config()
			if err != nil {
				return
			}
			conn.SetDeadline(time.Now().Add(patience))
			server := tls.Server(conn, config)
			if _, err := io.WriteString(server, "."); err != nil { // says that the client was taken
				return
			}
			server.Close()
		})
	}
}

// visit opens a connection to another consumer; nil says that each took the other.
func (c *Consumer) visit(ctx context.Context, to *Consumer) error {
	config, err := c.config()
	if err != nil {
		return err
	}
	config.ServerName = to.Name
	dialer := &tls.Dialer{NetDialer: &net.Dialer{Timeout: patience}, Config: config}
	conn, err := dialer.DialContext(ctx, "tcp", to.Address)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		return fmt.Errorf("refused: %w", err)
	}
	return nil
}

// Count is what a prober saw.
type Count struct {
	Tried, Failed int64
	Rounds        int64    // how often all pairs were tried
	First         []string // of the failures
}

func (c Count) String() string {
	return fmt.Sprintf("%d connections between all pairs (%d rounds), %d failures", c.Tried, c.Rounds, c.Failed)
}

// Prober is a round of visits that goes on until it is stopped.
type Prober struct {
	consumers []*Consumer
	cancel    context.CancelFunc
	all       sync.WaitGroup

	next, tried, failed atomic.Int64

	mu    sync.Mutex
	first []string
}

// mostFailures bounds how many failures are told in words.
const mostFailures = 10

// Start begins to visit: workers connections at a time, and each worker rests for pause after each of its visits.
func Start(consumers []*Consumer, workers int, pause time.Duration) *Prober {
	ctx, cancel := context.WithCancel(context.Background())
	p := &Prober{consumers: consumers, cancel: cancel}
	for range workers {
		p.all.Go(func() { p.work(ctx, pause) })
	}
	return p
}

func (p *Prober) work(ctx context.Context, pause time.Duration) {
	n := int64(len(p.consumers))
	for ctx.Err() == nil && n > 0 {
		k := p.next.Add(1) - 1
		// The distance grows by one with each turn through all hosts, so that a turn has each host visit, and be visited, once.
		from, distance := k%n, k/n%n
		to := (from + distance) % n
		err := p.consumers[from].visit(ctx, p.consumers[to])
		if ctx.Err() != nil {
			return
		}
		p.tried.Add(1)
		if err != nil {
			p.fail(fmt.Sprintf("%s %s → %s: %v", time.Now().UTC().Format("15:04:05.000"), p.consumers[from].Name, p.consumers[to].Name, err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

func (p *Prober) fail(text string) {
	p.failed.Add(1)
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.first) < mostFailures {
		p.first = append(p.first, text)
	}
}

// Count is what was seen so far.
func (p *Prober) Count() Count {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := Count{Tried: p.tried.Load(), Failed: p.failed.Load(), First: p.first}
	if n := int64(len(p.consumers)); n > 0 {
		c.Rounds = c.Tried / (n * n)
	}
	return c
}

// Stop ends it, and returns what it saw.
func (p *Prober) Stop() Count {
	p.cancel()
	p.all.Wait()
	return p.Count()
}
