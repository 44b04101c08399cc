package importer

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"path/filepath"
	"strings"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
)

const (
	maxIndex = 1 << 30   // bytes: some millions of lines
	maxCRL   = 256 << 20 // some millions of entries
)

// OpenSSL says where an `openssl ca` keeps its files. Only Dir is needed; the other paths, absolute or below Dir, stand for
// what its openssl.cnf may have set. openssl.cnf itself is not read.
type OpenSSL struct {
	Dir         string
	Certificate string // cacert.pem, or ca.pem, ca.crt, certs/ca.cert.pem
	Key         string // private/cakey.pem, or private/ca.key, private/ca.key.pem, ca.key
	Chain       string // certificates above it; none by default
	Index       string // index.txt
	Serial      string // serial
	CRLNumber   string // crlnumber
	NewCerts    string // newcerts
	CRL         string // crl.pem
	Password    []byte // of the key; nil when it is not encrypted
}

// The names under which the files of an OpenSSL CA are looked for, the first that exists: openssl.cnf's own, and those of
// the guides that most home-made CAs follow.
var (
	certificateNames = []string{"cacert.pem", "ca.pem", "ca.crt", "certs/ca.cert.pem"}
	keyNames         = []string{"private/cakey.pem", "private/ca.key", "private/ca.key.pem", "ca.key"}
)

// FromOpenSSL reads the CA of a directory: issuer and key, every line of the index with the certificate from newcerts where
// it is still there, the CRL, and the counters.
func FromOpenSSL(o OpenSSL, now time.Time) (*CA, error) {
	f := Files{Password: o.Password}
	var err error
	if f.Certificate, err = o.need(o.Certificate, "CA certificate", certificateNames...); err != nil {
		return nil, err
	}
	if f.Key, err = o.need(o.Key, "CA key", keyNames...); err != nil {
		return nil, err
	}
	if o.Chain != "" {
		if f.Chain, err = o.need(o.Chain, "chain"); err != nil {
			return nil, err
		}
	}
	c, err := FromFiles(f, now)
	if err != nil {
		return nil, err
	}
	b := newBook(c)
	b.index = true
	if err := o.readIndex(b); err != nil {
		return nil, err
	}
	if c.NextSerial, err = o.counter(o.Serial, "serial"); err != nil {
		return nil, err
	}
	next, err := o.counter(o.CRLNumber, "crlnumber")
	if err != nil {
		return nil, err
	}
	if next != nil && next.Sign() > 0 { // the file holds the number that comes next
		c.CRLNumber = next.Sub(next, big.NewInt(1))
	}
	list, err := o.find(maxCRL, o.CRL, "crl.pem")
	if err != nil {
		return nil, err
	}
	if list == nil {
		return b.finish(nil, nil)
	}
	return b.finish(nil, [][]byte{list})
}

func (o OpenSSL) path(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(o.Dir, filepath.FromSlash(name))
}

// find reads the file set, which must exist, or else the first of names that does; nil when none does.
func (o OpenSSL) find(limit int64, set string, names ...string) ([]byte, error) {
	if set != "" {
		return readFile(o.path(set), limit)
	}
	for _, name := range names {
		data, err := readFile(o.path(name), limit)
		if !errors.Is(err, fs.ErrNotExist) {
			return data, err
		}
	}
	return nil, nil
}

func (o OpenSSL) need(set, what string, names ...string) ([]byte, error) {
	data, err := o.find(keyfile.MaxFile, set, names...)
	if err == nil && data == nil {
		err = fault.New(fault.NotFound, "%s has no %s: none of %s exists", o.Dir, what, strings.Join(names, ", "))
	}
	return data, err
}

// readFile reads a regular file of at most limit bytes.
func readFile(path string, limit int64) ([]byte, error) {
	data, err := keyfile.ReadFile(path, limit)
	if err != nil {
		return nil, fmt.Errorf("read CA: %w", err)
	}
	return data, nil
}

// counter reads a hexadecimal number; nil when the file is not there.
func (o OpenSSL) counter(set, name string) (*big.Int, error) {
	data, err := o.find(keyfile.MaxFile, set, name)
	if data == nil || err != nil {
		return nil, err
	}
	text := string(bytes.TrimSpace(data))
	n, ok := new(big.Int).SetString(text, 16)
	if !ok || strings.ContainsAny(text, "+-_") || n.BitLen() > maxSerialBits {
		return nil, fault.New(fault.Invalid, "the CA's file %s holds %q, not a hexadecimal number", name, clip(text))
	}
	return n, nil
}

// readIndex records what the index says, and reads newcerts beside it.
func (o OpenSSL) readIndex(b *book) error {
	data, err := o.find(maxIndex, o.Index, "index.txt")
	if err == nil && data == nil {
		err = fault.New(fault.NotFound, "%s has no index.txt", o.Dir).
			WithHint("a CA without an index is imported by its certificate and key")
	}
	if err != nil {
		return err
	}
	lines, err := parseIndex(bytes.NewReader(data))
	if err != nil {
		return err
	}
	newCerts := o.NewCerts
	if newCerts == "" {
		newCerts = "newcerts"
	}
	for _, line := range lines {
		if err := o.addLine(b, line, o.path(newCerts)); err != nil {
			return fmt.Errorf("index line %d: %w", line.number, err)
		}
	}
	return nil
}

func (o OpenSSL) addLine(b *book, line indexLine, newCerts string) error {
	own := b.ca.Certificate
	issued := line.Record
	path := filepath.Join(newCerts, line.hex+".pem")
	data, err := readFile(path, keyfile.MaxFile)
	if errors.Is(err, fs.ErrNotExist) {
		if line.Serial.Cmp(own.SerialNumber) == 0 && bytes.Equal(own.RawSubject, own.RawIssuer) && line.NotAfter.Equal(own.NotAfter) {
			return nil // openssl ca -selfsign lists the root itself
		}
		b.add(issued)
		return nil
	}
	if err != nil {
		return err
	}
	certs, err := keyfile.ParseCertificates(data)
	if err != nil {
		// Go reads certificates more strictly than OpenSSL. What it does not read can still be revoked by its serial.
		b.ca.warn("%s cannot be read (%v); only its record is imported", path, err)
		b.add(issued)
		return nil
	}
	x := certs[0]
	if x.Equal(own) {
		return nil
	}
	if x.SerialNumber.Cmp(line.Serial) != 0 {
		return fault.New(fault.Invalid, "%s has serial %x, not %s", path, x.SerialNumber, line.hex)
	}
	if err := b.checkIssued(x); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if !x.NotAfter.Equal(line.NotAfter) {
		b.ca.warn("%s ends at %s and the index says %s; the certificate is believed", path, x.NotAfter.UTC().Format(time.RFC3339),
			line.NotAfter.Format(time.RFC3339))
	}
	revocation := issued.Revocation
	issued = b.record(x)
	issued.Revocation = revocation
	b.add(issued)
	return nil
}
