package place

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"

	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
)

// store is a key store. Its bytes differ each time, so that what is there is compared entry by entry.
func (r *rendering) store() ([]byte, func([]byte) bool, error) {
	password, err := r.password()
	if err != nil {
		return nil, nil, err
	}
	entries, err := r.entries()
	if err != nil {
		return nil, nil, err
	}
	magic := r.file.Format == "jks"
	data, err := r.encode(entries, password)
	same := func(there []byte) bool {
		if bytes.HasPrefix(there, []byte("\xfe\xed\xfe\xed")) != magic {
			return false
		}
		got, err := keyfile.DecodeStore(there, password)
		return err == nil && keyfile.SameEntries(got, entries)
	}
	return data, same, err
}

// entries are a key with its path, and each anchor as a trusted certificate.
func (r *rendering) entries() ([]keyfile.Entry, error) {
	var key *keyfile.Entry
	var trusted []keyfile.Entry
	if r.file.Secret() {
		if r.material.Key == nil {
			return nil, fault.New(fault.Invalid, "there is no key to place")
		}
		key = &keyfile.Entry{Alias: cmp.Or(r.file.Alias, r.plan.Recipe), Key: r.material.Key}
	}
	for _, content := range r.file.Content {
		if content == "key" {
			continue
		}
		certificates, err := r.certificates(content)
		if err != nil {
			return nil, err
		}
		if key != nil && content != "anchors" && content != "pinned" {
			key.Chain = append(key.Chain, certificates...)
			continue
		}
		trusted = append(trusted, trustedEntries(certificates)...)
	}
	if key == nil {
		return trusted, nil
	}
	return append([]keyfile.Entry{*key}, trusted...), nil
}

func trustedEntries(certificates []*x509.Certificate) []keyfile.Entry {
	var all []keyfile.Entry
	for _, c := range certificates {
		all = append(all, keyfile.Entry{Alias: fileStem(c), Chain: []*x509.Certificate{c}})
	}
	return all
}

// encode makes a new key store.
func (r *rendering) encode(entries []keyfile.Entry, password []byte) ([]byte, error) {
	if r.file.Format == "jks" {
		return keyfile.EncodeJKS(entries, password, nil)
	}
	return keyfile.EncodePKCS12(entries, password)
}

// password is the first line of the key store's password file.
func (r *rendering) password() ([]byte, error) {
	if r.file.PasswordFile == "" {
		return nil, nil
	}
	password, err := r.Password(r.file.PasswordFile)
	if err != nil {
		return nil, fmt.Errorf("read the password: %w", err)
	}
	return bytes.TrimRight(password, "\r\n"), nil
}

// trusted are the certificates that a file holds and trusts; at least one.
func (r *rendering) trusted() ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for _, content := range r.file.Content {
		if content == "crls" {
			continue
		}
		some, err := r.certificates(content)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	if len(all) == 0 {
		return nil, fault.New(fault.Invalid, "there is nothing to place as %s, and nothing empty is placed", strings.Join(r.file.Content, ", "))
	}
	return distinct(all), nil
}

func fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// merged is a trust store in which certificates of others stay: a PEM bundle or a key store, of whichever kind it is that is
// there, since Java tells by the content and not by the name.
func (r *rendering) merged() (*Share, error) {
	wanted, err := r.trusted()
	if err != nil {
		return nil, err
	}
	password, err := r.password()
	if err != nil {
		return nil, err
	}
	return &Share{Keep: true, Merge: func(there [][]byte, ours []string, _ bool) (Merged, error) {
		return r.mergeInto(there[0], newLedger(ours, ""), wanted, password, false)
	}}, nil
}

// mergeInto brings a store of one file to what is wanted in it.
func (r *rendering) mergeInto(there []byte, l *ledger, wanted []*x509.Certificate, password []byte, leaves bool) (Merged, error) {
	isPEM := r.file.Format == "" || r.file.Format == "pem"
	var has []keyfile.Trusted
	var err error
	switch {
	case there == nil:
	case isPEM:
		has = certificatesIn(there)
	default:
		if has, err = keyfile.TrustedIn(there, password); err != nil {
			return Merged{}, fmt.Errorf("open the store with the password in %s: %w", r.file.PasswordFile, err)
		}
	}
	missing, drop, entries := l.change(has, wanted, leaves)
	out := Merged{Files: [][]byte{there}, Entries: entries, Told: l.told}
	switch {
	case there == nil && len(missing) == 0:
	case there == nil && isPEM:
		out.Files[0] = keyfile.EncodeCertificates(missing...)
	case there == nil:
		out.Files[0], err = r.encode(trustedEntries(missing), password)
	case len(missing) == 0 && !slices.ContainsFunc(has, drop):
	case isPEM:
		out.Files[0] = mergePEM(there, drop, missing)
	default:
		out.Files[0], err = keyfile.Retrust(there, password, drop, trustedEntries(missing))
	}
	return out, err
}

// nextPEM cuts a PEM file before its next block: what stands before it, the block as it stands there, and the rest. Block is
// nil where there is none.
func nextPEM(data []byte) (before []byte, block *pem.Block, text, rest []byte) {
	block, rest = pem.Decode(data)
	if block == nil {
		return data, nil, nil, nil
	}
	text = data[:len(data)-len(rest)]
	at := bytes.LastIndex(text, []byte("-----BEGIN "))
	return text[:at], block, text[at:], rest
}

// pemCertificate is the certificate of a PEM block; nil where it is something else. OpenSSL takes three kinds of blocks for
// certificates, of which one has more after it.
func pemCertificate(block *pem.Block) []byte {
	switch block.Type {
	case "CERTIFICATE", "X509 CERTIFICATE":
		return block.Bytes
	case "TRUSTED CERTIFICATE":
		var one asn1.RawValue
		if _, err := asn1.Unmarshal(block.Bytes, &one); err == nil {
			return one.FullBytes
		}
	}
	return nil
}

// certificatesIn lists the certificates of a PEM file without parsing them.
func certificatesIn(data []byte) []keyfile.Trusted {
	var all []keyfile.Trusted
	for {
		_, block, _, rest := nextPEM(data)
		if block == nil {
			return all
		}
		if der := pemCertificate(block); der != nil {
			all = append(all, keyfile.Trusted{DER: der})
		}
		data = rest
	}
}

// mergePEM takes certificates out of a PEM file and puts others at its end. All else in it, comments too, stays.
func mergePEM(data []byte, drop func(keyfile.Trusted) bool, more []*x509.Certificate) []byte {
	var out []byte
	for {
		before, block, text, rest := nextPEM(data)
		out = append(out, before...)
		if block == nil {
			break
		}
		if der := pemCertificate(block); der == nil || !drop(keyfile.Trusted{DER: der}) {
			out = append(out, text...)
		}
		data = rest
	}
	if len(out) > 0 && out[len(out)-1] != '\n' {
		out = append(out, '\n')
	}
	return append(out, keyfile.EncodeCertificates(more...)...)
}
