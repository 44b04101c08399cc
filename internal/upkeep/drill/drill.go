// Package drill restores a backup into a scratch place, has what was restored sign and be verified, says how that went, and removes
// all of it: a backup that was never restored is a hope.
//
// A drill without the recovery key, which is offline and so no node can use by itself, takes a backup for a key that is made for
// it and gone afterwards; the keys in it are opened by this node. It proves that what a backup holds is whole, and that it loads and
// signs. Only a drill with the recovery key proves that this key opens it, and it can be of a backup that lies elsewhere.
//
// What is restored is never served: no port is opened, and its directory is gone at the end, also that of a drill that was killed
// before. The authority's own keys sign no certificate and no CRL, which no record of the authority would have: each signs a text
// that says what it is, and its certificate verifies that. Issuing is tried under an issuer of the scratch place, whose key is made there
// and is gone with it.
package drill

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pki/crl"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/schema"
	"chancery/internal/upkeep/backup"
	"chancery/internal/upkeep/finding"
	"chancery/internal/upkeep/setup"
	"chancery/internal/upkeep/verify"
)

// Options say what to try.
type Options struct {
	Dir     string // where the scratch directory is made; its file system needs room for the whole authority
	Node    *keys.NodeKey
	Version string // of the program

	// Scratch is the URL of a PostgreSQL database to restore into, in a schema of its own; empty means SQLite in the scratch directory.
	Scratch string

	// Backup is a file to try, with the Recovery key that opens it; without them a fresh backup is taken.
	Backup   string
	Recovery *keys.Recovery
}

// Drilled is how a drill went.
type Drilled struct {
	At       time.Time     `json:"at"`     // when it began
	Taken    time.Time     `json:"taken"`  // the backup
	Fresh    bool          `json:"fresh"`  // taken for the drill
	Engine   db.Dialect    `json:"engine"` // that it was restored into
	Recovery bool          `json:"recovery_key_tried"`
	Octets   int64         `json:"octets"`
	Rows     int64         `json:"rows"`
	Keys     int           `json:"keys"` // that were opened
	Issuers  int           `json:"issuers"`
	Looked   int           `json:"findings"` // of verify
	Took     time.Duration `json:"-"`
	Failed   string        `json:"failed,omitempty"`
}

// prefix begins the names of scratch directories.
const prefix = "drill-"

// run is one drill.
type run struct {
	Options
	from *setup.Services
	dir  string
	done Drilled
}

// Run drills, and records in the audit how it went. The error says that the drill failed; Drilled.Failed says the same.
func Run(ctx context.Context, s *setup.Services, o Options) (*Drilled, error) {
	r := &run{Options: o, from: s}
	r.done.At = time.Now()
	err := r.try(ctx)
	r.done.Took = time.Since(r.done.At)
	if err != nil {
		r.done.Failed = err.Error()
	}
	if ctx.Err() != nil {
		return &r.done, err // it was ended and did not fail
	}
	by := access.System(s.Audit.Node())
	recorded := s.DB.Tx(ctx, func(tx *db.Tx) error {
		return s.Audit.Append(ctx, tx, audit.Event{Time: time.Now(), Actor: by.Actor(), Action: backup.DrillAction, Object: by.Name,
			Detail: backup.Drilled{Failed: r.done.Failed, Taken: r.done.Taken.UTC(), Fresh: r.done.Fresh, Recovery: r.done.Recovery,
				Rows: r.done.Rows, Keys: r.done.Keys, TookMS: r.done.Took.Milliseconds()}})
	})
	if recorded != nil {
		recorded = fmt.Errorf("record the drill: %w", recorded)
	}
	return &r.done, errors.Join(err, recorded)
}

func (r *run) try(ctx context.Context) (err error) {
	lock, err := onlyOne(r.Dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if err := sweep(r.Dir); err != nil {
		return err
	}
	if r.dir, err = os.MkdirTemp(r.Dir, prefix); err != nil {
		return fmt.Errorf("make a scratch directory: %w", err)
	}
	defer func() {
		if gone := os.RemoveAll(r.dir); gone != nil {
			err = errors.Join(err, fmt.Errorf("remove the scratch directory: %w", gone))
		}
	}()
	file, opener := r.Backup, r.Recovery
	if file == "" {
		if file, opener, err = r.take(ctx); err != nil {
			return err
		}
	}
	d, remove, err := r.scratch(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close(), remove()) }()
	r.done.Engine = d.Dialect()
	if err := r.load(ctx, d, file, opener); err != nil {
		return err
	}
	s, err := r.assemble(ctx, d, opener)
	if err != nil {
		return err
	}
	if err := r.sign(ctx, s); err != nil {
		return err
	}
	return r.verify(ctx, s)
}

// onlyOne takes the place where drills are made for one, before anything is looked at or made there. The kernel gives it back when the
// process ends, however it does.
func onlyOne(dir string) (*os.File, error) {
	path := filepath.Join(dir, "."+prefix+"lock")
	// It is empty, and one that root's command made has to be of use to the node's user too.
	lock, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|syscall.O_NOFOLLOW, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock the place of drills: %w", err)
	}
	err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = fault.New(fault.Conflict, "another drill runs in %s", dir)
	}
	if err != nil {
		_ = lock.Close()
		return nil, err
	}
	return lock, nil
}

// sweep removes what drills before left that were killed. Who calls it holds the lock, so none of them runs.
func sweep(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, prefix+"*"))
	if err != nil {
		return err
	}
	for _, path := range left {
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("remove what an earlier drill left: %w", err)
		}
	}
	return nil
}

// take takes a backup, for the recovery key where that is here and else for one that lives as long as the drill.
func (r *run) take(ctx context.Context) (file string, opener *keys.Recovery, err error) {
	r.done.Fresh = true
	if opener = r.Recovery; opener == nil {
		if opener, err = keys.GenerateRecovery(); err != nil {
			return "", nil, err
		}
	}
	set, err := r.from.Settings.Get(ctx)
	if err != nil {
		return "", nil, err
	}
	signer, err := r.from.AuditSigner(ctx)
	if err != nil {
		return "", nil, err
	}
	file = filepath.Join(r.dir, "backup")
	out, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", nil, err
	}
	header := backup.Header{Authority: set.Authority, Node: r.from.Audit.Node(), Version: r.Version}
	err = backup.Write(ctx, out, r.from.DB, opener.Public(), header, signer)
	return file, opener, errors.Join(err, out.Close())
}

func (r *run) load(ctx context.Context, d *db.DB, file string, opener *keys.Recovery) error {
	known, err := r.from.AuditKeys(ctx)
	if err != nil {
		return err
	}
	if err := schema.Migrate(ctx, d); err != nil {
		return err
	}
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer in.Close()
	stat, err := in.Stat()
	if err != nil {
		return err
	}
	r.done.Octets = stat.Size()
	err = d.TxAlone(ctx, func(tx *db.Tx) error {
		if _, err := in.Seek(0, 0); err != nil {
			return err
		}
		source, err := backup.Open(in, opener.Identity())
		if err != nil {
			return err
		}
		r.done.Taken = source.Header.At
		r.done.Rows, err = source.Load(ctx, tx, known)
		return err
	})
	if err != nil {
		return fmt.Errorf("load the backup: %w", err)
	}
	return nil
}

// assemble puts the restored services together, as this node, or with the recovery key as a new one that nobody wrapped keys to.
func (r *run) assemble(ctx context.Context, d *db.DB, opener *keys.Recovery) (*setup.Services, error) {
	if r.Recovery == nil {
		s, err := setup.Assemble(d, r.from.Audit.Node(), r.Node, slog.New(slog.DiscardHandler))
		if err != nil {
			return nil, err
		}
		if err := s.BelieveAs(r.from); err != nil {
			return nil, err
		}
		r.lendTokens(s)
		return s, d.LearnClock(ctx)
	}
	key, err := keys.CreateNodeKey(filepath.Join(r.dir, "node.key"))
	if err != nil {
		return nil, err
	}
	s, recovered, err := setup.Recovered(ctx, d, key, opener)
	if err != nil {
		return nil, err
	}
	r.lendTokens(s)
	r.done.Recovery = true
	if recovered == 0 {
		return nil, fault.New(fault.Invalid, "the recovery key opens the backup, and none of the keys in it")
	}
	return s, nil
}

// lendTokens lets what was restored sign with the tokens that this node reaches: their keys are in no backup.
func (r *run) lendTokens(s *setup.Services) {
	if r.from.Tokens != nil {
		s.Keys.UseTokens(r.from.Tokens)
	}
}

// sign has every issuer's key that is there sign a text, and an issuer of the scratch place a certificate and a CRL.
func (r *run) sign(ctx context.Context, s *setup.Services) error {
	problems, looked, err := s.CA.KeyProblems(ctx)
	if err != nil {
		return err
	}
	if len(problems) > 0 {
		return fault.New(fault.Conflict, "issuer %s: %s", problems[0].Issuer, problems[0].Message)
	}
	issuers, err := s.CA.Issuers(ctx)
	if err != nil {
		return err
	}
	for _, i := range issuers {
		if i.Certificate == nil || i.KeyID == "" {
			continue
		}
		if err := r.prove(ctx, s, i); err != nil {
			return fmt.Errorf("the key of issuer %s: %w", i.Name, err)
		}
		r.done.Issuers++
	}
	if looked == 0 || r.done.Issuers == 0 {
		return fault.New(fault.Conflict, "no issuer of %d has a key that could sign", len(issuers))
	}
	return r.issue(ctx, s)
}

// prove has a key sign what is no certificate, no CRL and no OCSP response, and its certificate verify that.
func (r *run) prove(ctx context.Context, s *setup.Services, i *ca.Issuer) error {
	signer, err := s.Keys.SignerFor(ctx, i.KeyID, i.Certificate)
	if err != nil {
		return err
	}
	text := fmt.Appendf(nil, "chancery backup drill of issuer %s on %s at %s: this text is no certificate", i.ID, r.from.Audit.Node(),
		r.done.At.UTC().Format(time.RFC3339Nano))
	digest, hash := text, crypto.Hash(0) // Ed25519 signs the text itself
	if _, pure := i.Certificate.PublicKey.(ed25519.PublicKey); !pure {
		sum := sha256.Sum256(text)
		digest, hash = sum[:], crypto.SHA256
	}
	signature, err := signer.Sign(rand.Reader, digest, hash)
	if err != nil {
		return err
	}
	good := false
	switch public := i.Certificate.PublicKey.(type) {
	case *rsa.PublicKey:
		good = rsa.VerifyPKCS1v15(public, hash, digest, signature) == nil
	case *ecdsa.PublicKey:
		good = ecdsa.VerifyASN1(public, digest, signature)
	case ed25519.PublicKey:
		good = ed25519.Verify(public, text, signature)
	}
	if !good {
		return fault.New(fault.Conflict, "its certificate does not verify what it signed")
	}
	return nil
}

// issue makes an issuer in the scratch place, and has it issue a certificate and sign a CRL. Both verify under it, and under nothing else.
func (r *run) issue(ctx context.Context, s *setup.Services) error {
	// Who may have any name, in the scratch place alone: its rows are gone with it.
	by := access.Principal{ID: "drill", Name: "drill", Kind: access.KindOperator, Roles: []access.Role{access.Admin}}
	name := "drill-" + strings.ToLower(rand.Text()[:8])
	own, _, err := s.CA.CreateIssuer(ctx, by, ca.IssuerSpec{Name: name, Subject: "CN=Drill " + name, Validity: time.Hour})
	if err != nil {
		return fmt.Errorf("make an issuer: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	made, err := s.CA.Issue(ctx, by, ca.Order{
		Issuer: own.ID, Profile: "server", PublicKey: spki, Names: []string{"dns:drill.invalid"}, Validity: 10 * time.Minute,
	})
	if err != nil {
		return fmt.Errorf("issue a certificate: %w", err)
	}
	certificate, err := x509.ParseCertificate(made.DER)
	if err != nil {
		return err
	}
	if made.Issuer.ID != own.ID {
		return fault.New(fault.Internal, "issuer %s issued what the scratch place's was asked for", made.Issuer.Name)
	}
	if err := certificate.CheckSignatureFrom(own.Certificate); err != nil {
		return fmt.Errorf("the certificate that was issued does not verify: %w", err)
	}
	return r.list(ctx, s, own, certificate.SerialNumber)
}

// list signs a CRL with the certificate on it. The issuer is of the scratch place, and the list is held in memory only.
func (r *run) list(ctx context.Context, s *setup.Services, issuer *ca.Issuer, serial *big.Int) error {
	signer, err := s.Keys.SignerFor(ctx, issuer.KeyID, issuer.Certificate)
	if err != nil {
		return err
	}
	now := time.Now()
	der, err := crl.Encode(&crl.Spec{Issuer: issuer.Certificate, Number: big.NewInt(1), ThisUpdate: now, NextUpdate: now.Add(time.Minute)},
		[]crl.Entry{{Serial: serial, RevokedAt: now, Reason: crl.CessationOfOperation}}, signer)
	if err != nil {
		return fmt.Errorf("sign a CRL: %w", err)
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return fmt.Errorf("read the CRL that was signed: %w", err)
	}
	if err := list.CheckSignatureFrom(issuer.Certificate); err != nil {
		return fmt.Errorf("the CRL that was signed does not verify: %w", err)
	}
	if len(list.RevokedCertificateEntries) != 1 || !bytes.Equal(list.RevokedCertificateEntries[0].SerialNumber.Bytes(), serial.Bytes()) {
		return fault.New(fault.Internal, "the CRL that was signed does not list what it was made for")
	}
	return nil
}

// verify looks at what was restored as an outsider would.
func (r *run) verify(ctx context.Context, s *setup.Services) error {
	if err := r.opened(ctx, s); err != nil {
		return err
	}
	seq, err := verify.Store(ctx, s, verify.Shown{})
	if err != nil {
		return err
	}
	for f, err := range seq {
		if err != nil {
			return err
		}
		if r.done.Looked++; f.Level == finding.Error {
			return fault.New(fault.Conflict, "chancery verify finds in what was restored: %s %s: %s", f.Check, f.Object, f.Message)
		}
	}
	if r.done.Looked == 0 {
		return fault.New(fault.Internal, "verify looked at nothing")
	}
	return nil
}

// opened has every key opened that can be, and fails where one cannot, or where the recovery key could not open it.
func (r *run) opened(ctx context.Context, s *setup.Services) error {
	found, checked, err := s.Keys.Check(ctx, r.Recovery)
	if err != nil {
		return err
	}
	all, err := s.Keys.Recipients(ctx)
	if err != nil {
		return err
	}
	// That another node lacks a wrap, or has one too many, is for doctor to say: a restored authority has none of those nodes.
	matters := map[string]bool{s.Keys.Self(): true}
	for _, to := range all {
		matters[to.ID] = matters[to.ID] || to.Kind == keys.KindRecovery
	}
	for _, f := range found {
		switch f.Rule {
		case keys.SuperfluousWrap, keys.OrphanWrap:
			continue
		case keys.MissingWrap, keys.Unendorsed:
			if !matters[f.Recipient] {
				continue
			}
		}
		return fault.New(fault.Conflict, "the keys of the backup are not good: %s", strings.TrimPrefix(f.Key+": "+f.Message, ": "))
	}
	if r.done.Keys = checked.Opened; checked.Opened == 0 {
		return fault.New(fault.Conflict, "no key of %d opens", checked.Keys)
	}
	return nil
}
