package setup

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/upkeep/datadir"
)

// KeysOptions say which keys go into a PKCS#12 file.
type KeysOptions struct {
	Dir       datadir.Dir
	Subsystem keys.Subsystem // ca: issuers and their responders; ocsp: responders
	Out       string         // must not be there
	Password  []byte
	// SkipToken leaves out keys that are in a PKCS#11 token, instead of refusing to write a file that lacks them.
	SkipToken bool
}

// ExportedKey is a key that went into the file, or why one did not.
type ExportedKey struct {
	Name    string `json:"name"` // its friendlyName
	Subject string `json:"subject"`
	KeyID   string `json:"key_id"` // the form that certutil -K prints
	Left    string `json:"left_out,omitempty"`
}

// ExportKeys writes the authority's signing keys with their certification paths into a PKCS#12 file. It may run while a node does. A
// node's TLS key is never among them: each node has its own, and gets another where it is lost.
//
// The names are those that operators of Dogtag know. The key of the audit stays out: it is Ed25519 and has no certificate, and NSS
// would refuse the whole file for it; chancery backup has it.
func ExportKeys(ctx context.Context, o KeysOptions) (exported []ExportedKey, err error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	config, err := o.Dir.Load()
	if err != nil {
		return nil, err
	}
	s, err := OpenBeside(ctx, o.Dir, config, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	exported, err = s.exportKeys(ctx, o)
	if err != nil {
		_ = s.Close()
		return nil, err
	}
	return exported, s.Close()
}

// check refuses before anything is opened.
func (o *KeysOptions) check() error {
	switch o.Subsystem {
	case keys.SubsystemCA, keys.SubsystemOCSP:
	default:
		return fault.New(fault.Invalid, "the subsystem %q has no keys to back up; ca and ocsp have", o.Subsystem)
	}
	if n := utf8.RuneCount(o.Password); n < keys.MinPassphrase {
		return fault.New(fault.Invalid, "the password has %d characters, and at least %d are wanted: the file may be copied and tried for years",
			n, keys.MinPassphrase)
	}
	if _, err := os.Lstat(o.Out); err == nil {
		return fault.New(fault.Conflict, "%s exists, and may be the only copy of keys", o.Out).WithHint("take it away, or name another file")
	}
	if stat, err := os.Stat(filepath.Dir(o.Out)); err != nil {
		return err
	} else if !stat.IsDir() {
		return fault.New(fault.Invalid, "%s is no directory", filepath.Dir(o.Out))
	}
	return nil
}

func (s *Services) exportKeys(ctx context.Context, o KeysOptions) ([]ExportedKey, error) {
	now := time.Now()
	found, err := s.keysOf(ctx, o.Subsystem, now)
	if err != nil {
		return nil, err
	}
	var entries []keyfile.Entry
	var exported []ExportedKey
	for _, f := range found {
		f.told.KeyID = nssKeyID(f.entry.Chain[0].PublicKey)
		if f.told.Left == "" {
			f.entry.Key, err = s.Keys.Export(ctx, f.id)
			switch {
			case fault.Is(err, fault.Denied) && o.SkipToken:
				f.told.Left = err.Error()
			case err != nil:
				return nil, fmt.Errorf("%s (%s): %w", f.told.Name, f.told.Subject, err)
			}
		}
		if f.told.Left == "" {
			if err := keyfile.CheckPair(f.entry.Key.Public(), f.entry.Chain[0]); err != nil {
				return nil, fmt.Errorf("%s: %w", f.told.Name, err)
			}
			f.entry.KeyID = keyIDOf(f.entry.Key.Public())
			entries = append(entries, f.entry)
		}
		exported = append(exported, f.told)
	}
	if len(entries) == 0 {
		return nil, fault.New(fault.Conflict, "there is no key to write: %s", strings.Join(leftOut(exported), "; "))
	}
	text, err := keyfile.EncodePKCS12(entries, o.Password)
	if err != nil {
		return nil, err
	}
	// The record comes first: a file that nobody knows of must not be.
	by := access.System(s.Audit.Node())
	err = s.DB.Tx(ctx, func(tx *db.Tx) error {
		return s.Audit.Append(ctx, tx, audit.Event{Time: now, Actor: by.Actor(), Action: "keys.export", Object: string(o.Subsystem),
			Detail: map[string]any{"file": o.Out, "keys": exported}})
	})
	if err != nil {
		return nil, err
	}
	if err := keyfile.WriteFile(o.Out, text, 0o600); err != nil {
		return nil, fmt.Errorf("write %s: %w", o.Out, err)
	}
	return exported, nil
}

// foundKey is a key that belongs into the file, with its path.
type foundKey struct {
	id    string
	entry keyfile.Entry
	told  ExportedKey
}

func (s *Services) keysOf(ctx context.Context, of keys.Subsystem, now time.Time) ([]foundKey, error) {
	issuers, err := s.CA.Issuers(ctx)
	if err != nil {
		return nil, err
	}
	var found []foundKey
	for _, i := range issuers {
		if of != keys.SubsystemCA || i.Certificate == nil {
			continue // what waits for its certificate has nothing to be found by
		}
		f := foundKey{id: i.KeyID, entry: entryOf("caSigningCert "+i.Name, i.Certificate, i.Chain)}
		f.told = ExportedKey{Name: f.entry.Alias, Subject: i.Certificate.Subject.String()}
		if i.KeyID == "" {
			f.told.Left = "the key is kept offline"
		}
		found = append(found, f)
	}
	responders, err := s.Revocation.Responders(ctx, now)
	if err != nil {
		return nil, err
	}
	for _, r := range responders {
		at := slices.IndexFunc(issuers, func(i *ca.Issuer) bool { return i.ID == r.Issuer })
		if at < 0 {
			continue
		}
		i := issuers[at]
		alias := "ocspSigningCert " + i.Name
		if slices.ContainsFunc(found, func(f foundKey) bool { return f.entry.Alias == alias }) {
			alias += " " + r.Certificate.SerialNumber.Text(16) // one before the newest, which signs still or has just ceased to
		}
		f := foundKey{id: r.KeyID, entry: entryOf(alias, r.Certificate, append([]*x509.Certificate{i.Certificate}, i.Chain...))}
		f.told = ExportedKey{Name: f.entry.Alias, Subject: r.Certificate.Subject.String()}
		found = append(found, f)
	}
	return found, nil
}

// entryOf is an entry that still lacks its key.
func entryOf(name string, leaf *x509.Certificate, above []*x509.Certificate) keyfile.Entry {
	e := keyfile.Entry{Alias: name}
	for _, c := range append([]*x509.Certificate{leaf}, above...) {
		if slices.ContainsFunc(e.Chain, c.Equal) {
			continue // a root's chain is itself
		}
		if len(e.Chain) > 0 {
			e.CANames = append(e.CANames, c.Subject.String())
		}
		e.Chain = append(e.Chain, c)
	}
	return e
}

func nssKeyID(public crypto.PublicKey) string {
	if id, err := keyfile.NSSKeyID(public); err == nil {
		return id.String()
	}
	return ""
}

func keyIDOf(public crypto.PublicKey) []byte {
	id, err := keyfile.NSSKeyID(public)
	if err != nil {
		return nil
	}
	return bytes.Clone(id[:])
}

func leftOut(all []ExportedKey) (why []string) {
	for _, one := range all {
		why = append(why, one.Name+": "+one.Left)
	}
	return why
}
