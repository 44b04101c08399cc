package bench

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"math/big"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"chancery/internal/authority/ca"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/pki/keyfile"
	"chancery/internal/store/db"
	"chancery/internal/upkeep/setup"
)

// crop is what is put into the store in bulk, without the API: certificates as it issues them, signed by the issuer's key,
// or, with bare, records of revoked ones as an import leaves them. The audit has no events of them.
type crop struct {
	issuer string
	count  int
	bare   bool
	every  int           // one of so many is revoked
	age    time.Duration // when the first was issued; the others follow within two months
}

// seedRow is a row of certificate, and of revocation where entry is not empty.
type seedRow struct {
	id                  int64
	serial              *big.Int
	name, subject       string
	notBefore, notAfter time.Time
	der, entry          []byte
	revokedAt           time.Time
	partition           int
}

const seedReason = crl.Superseded

// seeder makes the rows of one crop.
type seeder struct {
	crop
	now        time.Time
	number     int64 // of the issuer
	requester  string
	encoder    *cert.Issuer
	signer     crypto.Signer
	keys       [][]byte // SubjectPublicKeyInfos to choose from
	partitions int
}

const (
	seedBatch = 2000
	seedSpan  = 60 * 24 * time.Hour
)

// seed puts crops into the stopped authority, and returns the certificates of some that are not revoked.
func (b *bench) seed(ctx context.Context, a *authority, crops ...crop) error {
	begin := time.Now()
	seeders := make([]*seeder, len(crops))
	err := a.open(ctx, func(s *setup.Services) (err error) {
		for i, c := range crops {
			if seeders[i], err = newSeeder(ctx, s, c); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("prepare to fill the store: %w", err)
	}
	var w seedWriter
	if a.pg == nil {
		w, err = openSQLite(ctx, a.dir.Database())
	} else {
		w, err = openPostgreSQL(ctx, a)
	}
	if err != nil {
		return err
	}
	total := 0
	for _, s := range seeders {
		total += s.count
		if err == nil {
			err = b.sow(ctx, a, s, w)
		}
	}
	if end := w.finish(ctx, err); err == nil {
		err = end
	}
	if err != nil {
		return fmt.Errorf("fill the store: %w", err)
	}
	b.say("%s: %d certificates were put into the store in %s", a.engine, total, short(time.Since(begin)))
	return nil
}

// seedWriter writes rows as fast as its engine can. finish brings back the indexes, and closes.
type seedWriter interface {
	write(ctx context.Context, s *seeder, rows []seedRow, change int64) (next int64, err error)
	lastChange(ctx context.Context, issuer int64) (int64, error)
	setChange(ctx context.Context, issuer, change int64) error
	finish(ctx context.Context, failed error) error
}

func newSeeder(ctx context.Context, s *setup.Services, c crop) (*seeder, error) {
	issuer, err := s.CA.Issuer(ctx, c.issuer)
	if err != nil {
		return nil, err
	}
	set, err := s.Settings.Get(ctx)
	if err != nil {
		return nil, err
	}
	urls := issuer.URLs(set.PublicURL)
	out := &seeder{crop: c, now: time.Now(), partitions: issuer.CRL.Partitions, encoder: &cert.Issuer{
		Certificate: issuer.Certificate, CRLDistributionPoints: []string{urls.CRL()}, CAIssuers: []string{urls.Certificate()},
		OCSPServers: []string{urls.OCSP()}, FreshestCRL: []string{urls.Delta()},
	}}
	if out.signer, err = s.Keys.Signer(ctx, issuer.KeyID); err != nil {
		return nil, err
	}
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		if err := tx.QueryRow(ctx, `SELECT number FROM issuer WHERE id = $1`, issuer.ID).Scan(&out.number); err != nil {
			return err
		}
		return tx.QueryRow(ctx, `SELECT id FROM principal WHERE name = 'admin'`).Scan(&out.requester)
	})
	for range 256 {
		key, err := keyfile.Generate(keyfile.ECDSAP256, 0)
		if err != nil {
			return nil, err
		}
		spki, err := cert.MarshalPublicKey(key.Public())
		if err != nil {
			return nil, err
		}
		out.keys = append(out.keys, spki)
	}
	return out, err
}

// sow makes the rows of a crop on all cores, and writes them.
func (b *bench) sow(ctx context.Context, a *authority, s *seeder, w seedWriter) error {
	change, err := w.lastChange(ctx, s.number)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	batches := make(chan []seedRow, 4)
	makers, makerCtx := errgroup.WithContext(ctx)
	workers := runtime.GOMAXPROCS(0)
	for worker := range workers {
		makers.Go(func() error {
			for from := worker * seedBatch; from < s.count; from += workers * seedBatch {
				rows, err := s.batch(from, min(from+seedBatch, s.count))
				if err != nil {
					return err
				}
				select {
				case batches <- rows:
				case <-makerCtx.Done():
					return makerCtx.Err()
				}
			}
			return nil
		})
	}
	g.Go(func() error {
		defer close(batches)
		return makers.Wait()
	})
	var sample []*x509.Certificate
	g.Go(func() error {
		for rows := range batches {
			if change, err = w.write(ctx, s, rows, change); err != nil {
				return err
			}
			if last := rows[len(rows)-1]; !s.bare && last.entry == nil {
				c, err := x509.ParseCertificate(last.der)
				if err != nil {
					return err
				}
				sample = append(sample, c)
			}
		}
		return w.setChange(ctx, s.number, change)
	})
	if err := g.Wait(); err != nil {
		return err
	}
	if !s.bare {
		a.sample = sample
	}
	return nil
}

func (s *seeder) batch(from, to int) ([]seedRow, error) {
	rows := make([]seedRow, 0, to-from)
	for i := from; i < to; i++ {
		r, err := s.row(i)
		if err != nil {
			return nil, err
		}
		rows = append(rows, *r)
	}
	return rows, nil
}

// row makes one. IDs grow with the time of issuance, as package ca has them.
func (s *seeder) row(i int) (*seedRow, error) {
	serial, err := cert.NewSerial()
	if err != nil {
		return nil, err
	}
	at := s.now.Add(-s.age + time.Duration(i)*(seedSpan/time.Duration(s.count))).Truncate(time.Microsecond)
	r := &seedRow{
		id: at.UnixMicro() << 10, serial: serial, name: fmt.Sprintf("seed-%07d.%s.example", i, s.issuer),
		notBefore: at.Truncate(time.Second), notAfter: at.Truncate(time.Second).Add(s.age + 30*24*time.Hour), der: []byte{},
		partition: crl.Partition(serial, s.partitions),
	}
	r.subject = "CN=" + r.name
	if (i+1)%s.every == s.every/2 || s.every == 1 {
		r.revokedAt = at.Add(time.Minute).Truncate(time.Second)
		if r.entry, err = crl.EncodeEntry(crl.Entry{Serial: serial, RevokedAt: r.revokedAt, Reason: seedReason}); err != nil {
			return nil, err
		}
	}
	if s.bare {
		r.name = strings.ToLower("serial:" + cert.FormatSerial(serial))
		return r, nil
	}
	tbs, err := cert.Build(s.template(r), s.keys[i%len(s.keys)], serial, s.encoder)
	if err != nil {
		return nil, err
	}
	linted, err := tbs.Lint(cert.Lints{})
	if err != nil {
		return nil, err
	}
	r.der, err = linted.Sign(s.signer)
	return r, err
}

// template is what the built-in profile server makes of a request.
func (s *seeder) template(r *seedRow) *cert.Template {
	return &cert.Template{
		Subject: cert.CommonName(r.name), NotBefore: r.notBefore, NotAfter: r.notAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, KeyUsageCritical: true,
		ExtKeyUsage: []asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 1}}, ExtKeyUsageCritical: true,
		SAN:                   []cert.GeneralName{cert.DNSName(r.name)},
		CRLDistributionPoints: s.encoder.CRLDistributionPoints, FreshestCRL: s.encoder.FreshestCRL,
		OCSPServers: s.encoder.OCSPServers, CAIssuers: s.encoder.CAIssuers,
	}
}

// The columns that are written, of both engines.
var (
	certificateColumns = []string{"id", "issuer", "serial", "state", "name", "not_before", "not_after", "replaces", "replaced_by",
		"profile", "profile_version", "requester", "subject", "der"}
	revocationColumns = []string{"certificate", "issuer", "crl_partition", "state", "reason", "revoked_at", "invalidity_date", "not_after",
		"change", "entry"}
)

func (s *seeder) certificateValues(r *seedRow) []any {
	state, profile := ca.Valid, "server"
	if r.entry != nil {
		state = ca.Revoked
	}
	if s.bare {
		profile = "imported"
	}
	return []any{r.id, s.number, r.serial.Bytes(), string(state), []byte(r.name), db.Micros(r.notBefore), db.Micros(r.notAfter), int64(0), int64(0),
		profile, int64(0), s.requester, r.subject, r.der}
}

func (s *seeder) revocationValues(r *seedRow, change int64) []any {
	return []any{r.id, s.number, int64(r.partition), string(ca.Revoked), int64(seedReason), db.Micros(r.revokedAt), int64(0), db.Micros(r.notAfter),
		change, r.entry}
}

// changeUpsert sets the last change of an issuer.
const changeUpsert = `INSERT INTO revocation_change (issuer, change) VALUES ($1, $2) ON CONFLICT (issuer) DO UPDATE SET change = excluded.change`

const lastChangeQuery = `SELECT COALESCE((SELECT change FROM revocation_change WHERE issuer = $1), 0)`
