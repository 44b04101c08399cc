package bench

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"chancery/client"
	"chancery/internal/run/cluster"
	"chancery/internal/run/consumer"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
)

// The issuers of the benchmark, each with another kind of CRL. The first is the one that setup makes.
const (
	plainIssuer = "default"
	deltaIssuer = "delta"
	partsIssuer = "parts"
)

// partitionCount keeps a partition of a million revocations at some 8,000 entries.
const partitionCount = 128

// authority is one under test: its data directory, and its node while that runs.
type authority struct {
	engine  string
	program string
	dir     datadir.Dir
	config  *datadir.Config
	pg      *consumer.PostgreSQL // nil on SQLite, and on a cluster
	member  *cluster.Member      // the one of a cluster that is on the node's machine, where it reads; nil where there is none
	node    *consumer.Process    // nil while it is stopped
	client  *client.Client
	tls     *tls.Config
	issuers map[string]*x509.Certificate
	before  int64               // what the store took of the disk before anything was issued
	issued  int64               // how many certificates the benchmark had issued
	sample  []*x509.Certificate // under the delta issuer, none of them revoked; what OCSP is asked about
	costs   []cost              // of a revocation where there were none
}

const database = "bench"

// recoveryWork is at what the recovery key of an authority is sealed that is gone in minutes: no passphrase of its is worth guessing, and
// at the usual cost each making of one keeps a processor busy for a second beside what is measured.
const recoveryWork = 10

// newAuthority makes one below dir and starts its node.
func (b *bench) newAuthority(ctx context.Context, engine, dir string) (*authority, error) {
	a := &authority{engine: engine, program: b.Program, dir: datadir.Dir(filepath.Join(dir, engine))}
	o := setup.Options{Dir: a.dir, Organization: "Bench", Online: true, RecoveryWork: recoveryWork}
	for _, address := range []*string{&o.Listen, &o.PublicListen, &o.Metrics} {
		var err error
		if *address, err = consumer.FreeAddress(); err != nil {
			return nil, err
		}
	}
	o.Address, o.PublicURL = "https://"+o.Listen, "http://"+o.PublicListen
	if engine == postgresEngine {
		var err error
		if o.DatabaseFile, err = a.startPostgreSQL(ctx, dir); err != nil {
			return nil, err
		}
	}
	if _, err := setup.Init(ctx, o); err != nil {
		return nil, fmt.Errorf("make an authority on %s: %w", engine, err)
	}
	if err := a.profiling(); err != nil {
		return nil, err
	}
	var err error
	if a.config, err = a.dir.Load(); err != nil {
		return nil, err
	}
	if err := a.connect(); err != nil {
		return nil, err
	}
	if a.before, err = a.size(ctx); err != nil {
		return nil, err
	}
	if _, err := a.start(ctx); err != nil {
		return nil, err
	}
	return a, a.makeIssuers(ctx)
}

// startPostgreSQL starts a durable server and writes the file with the database's URL. Its memory settings are those of a
// small dedicated server: the stock shared_buffers of 128 MB are meant to start everywhere.
func (a *authority) startPostgreSQL(ctx context.Context, dir string) (file string, err error) {
	a.pg, err = consumer.StartPostgreSQL(ctx, dir, consumer.PostgreSQLOptions{
		Durable: true, Settings: []string{"shared_buffers=512MB", "max_wal_size=4GB", "maintenance_work_mem=256MB"},
	})
	if err != nil {
		return "", err
	}
	if err := a.sql(ctx, "postgres", "CREATE DATABASE "+database); err != nil {
		return "", err
	}
	file = filepath.Join(dir, "database.url")
	return file, os.WriteFile(file, []byte(a.pg.URL(database)+"\n"), 0o600)
}

// profiling turns the node's profiles on.
func (a *authority) profiling() error {
	f, err := os.OpenFile(a.dir.Config(), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString("profiling: true\n")
	return errors.Join(err, f.Close())
}

// connect makes the client that operators use, and the TLS configuration of the load, which has the same identity.
func (a *authority) connect() error {
	roots, err := client.RootsFile(a.dir.IdentityRoot())
	if err != nil {
		return err
	}
	identity := client.CertificateFiles(a.dir.AdminCert(), a.dir.AdminKey())
	if a.client, err = client.New(client.Options{Address: a.config.Address, Roots: roots, Certificate: identity}); err != nil {
		return err
	}
	pair, err := identity()
	if err != nil {
		return err
	}
	a.tls = &tls.Config{RootCAs: roots, ServerName: "127.0.0.1", Certificates: []tls.Certificate{*pair}}
	return nil
}

// start runs the node, and returns how long it took from exec until it said that it was ready.
func (a *authority) start(ctx context.Context) (time.Duration, error) {
	begin := time.Now()
	node, err := consumer.Start(ctx, consumer.Program{Path: a.program, Args: []string{"serve", "--dir", string(a.dir)}})
	if err != nil {
		return 0, err
	}
	a.node = node
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := ready(ctx, a.config.Listen.Metrics)
		took := time.Since(begin)
		if err == nil {
			return took, nil
		}
		select {
		case <-node.Done():
			return 0, fmt.Errorf("the node on %s ended: %s", a.engine, node.Output())
		case <-ctx.Done():
			return 0, fmt.Errorf("the node on %s is not ready: %w; it printed: %s", a.engine, err, node.Output())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func ready(ctx context.Context, address string) error {
	_, err := fetch(ctx, "http://"+address+"/readyz")
	return err
}

// fetch gets a document by plain http.
func fetch(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %.200s", url, resp.Status, body)
	}
	return body, err
}

// stop ends the node in order.
func (a *authority) stop() error {
	if a.node == nil {
		return nil
	}
	err := a.node.Stop()
	a.client.Close()
	a.node = nil
	return err
}

// makeIssuers adds the issuers with delta and partitioned CRLs, and learns the certificates of all.
func (a *authority) makeIssuers(ctx context.Context) error {
	root := ""
	for i, err := range a.client.Issuers(ctx) {
		if err != nil {
			return err
		}
		if i.Root && i.Pool == plainIssuer {
			root = i.Name
		}
	}
	for name, mode := range map[string]client.CRLMode{deltaIssuer: {Delta: true}, partsIssuer: {Partitions: partitionCount}} {
		_, err := a.client.CreateIssuer(ctx, client.CreateIssuerRequest{
			Name: name, Kind: client.IssuerIntermediate, Parent: root, Subject: "CN=Bench " + name, CRL: &mode,
		})
		if err != nil {
			return fmt.Errorf("make issuer %s: %w", name, err)
		}
	}
	a.issuers = make(map[string]*x509.Certificate)
	for _, name := range []string{plainIssuer, deltaIssuer, partsIssuer} {
		i, err := a.client.Issuer(ctx, name)
		if err != nil {
			return err
		}
		if a.issuers[name], err = parsePEM(i.PEM); err != nil {
			return fmt.Errorf("issuer %s: %w", name, err)
		}
	}
	return nil
}

func parsePEM(text string) (*x509.Certificate, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, errors.New("no certificate in PEM")
	}
	return x509.ParseCertificate(block.Bytes)
}

// public is the address of the plain http listener.
func (a *authority) public() string { return a.config.Listen.Public }

// size is what the store takes. The node must be stopped on SQLite, whose log is folded into the file then.
func (a *authority) size(ctx context.Context) (int64, error) {
	if a.pg == nil {
		st, err := os.Stat(a.dir.Database())
		if err != nil {
			return 0, err
		}
		return st.Size(), nil
	}
	conn, err := a.postgres(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var n int64
	err = conn.QueryRow(ctx, "SELECT pg_database_size($1)", database).Scan(&n)
	return n, err
}

// cpu is the processor time of the node, and of the database server.
func (a *authority) cpu() (node, server time.Duration, err error) {
	if node, err = processTime(a.node.PID()); err != nil || a.pg == nil {
		return node, 0, err
	}
	server, err = familyTime(a.pg.PID())
	return node, server, err
}

// open opens the services of the stopped authority.
func (a *authority) open(ctx context.Context, use func(*setup.Services) error) error {
	if a.node != nil {
		return errors.New("the node still runs")
	}
	s, err := setup.Open(ctx, a.dir, a.config, discard)
	if err != nil {
		return err
	}
	return errors.Join(use(s), s.DB.Close())
}
