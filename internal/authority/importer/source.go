package importer

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
)

// Source names a CA on disk as an operator does: a directory of `openssl ca`, a PKCS#12 file, or a certificate and its key.
type Source struct {
	CA       string  // directory, PKCS#12 file, or CA certificate
	Key      string  // the CA's key; needed beside a certificate, possible beside a directory
	Token    string  // PKCS #11 URI of the CA's key, instead of Key
	Chain    string  // certificates above the CA
	CRL      string  // the newest CRL that it signed
	Issued   string  // a bundle of certificates that it issued; a directory has them in newcerts
	Alias    string  // which entry of a PKCS#12 file
	Password []byte  // of the key or the PKCS#12 file; nil for none
	OpenSSL  OpenSSL // where the files of a directory are that do not stand where openssl.cnf puts them
}

// Read reads the CA that s names.
func Read(s Source, now time.Time) (*CA, error) {
	st, err := os.Stat(s.CA)
	if err != nil {
		return nil, fmt.Errorf("read CA: %w", err)
	}
	if st.IsDir() {
		return s.directory(now)
	}
	store, err := readFile(s.CA, keyfile.MaxFile)
	if err != nil {
		return nil, err
	}
	issued, err := optional(s.Issued, keyfile.MaxFile)
	if err != nil {
		return nil, err
	}
	crls, err := optional(s.CRL, maxCRL)
	if err != nil {
		return nil, err
	}
	if s.Token != "" {
		return s.inToken(store, issued, crls, now)
	}
	if s.Key == "" {
		if _, err := keyfile.ParseCertificates(store); err == nil {
			return nil, fault.New(fault.Invalid, "%s is a certificate; its key is needed as well", s.CA)
		}
		return FromPKCS12(PKCS12{Store: store, Password: s.Password, Alias: s.Alias, Issued: issued, CRLs: crls}, now)
	}
	f := Files{Certificate: store, Password: s.Password, Issued: issued, CRLs: crls}
	if f.Key, err = readFile(s.Key, keyfile.MaxFile); err != nil {
		return nil, err
	}
	chain, err := optional(s.Chain, keyfile.MaxFile)
	if err != nil {
		return nil, err
	}
	if chain != nil {
		f.Chain = chain[0]
	}
	return FromFiles(f, now)
}

// inToken reads a CA whose key is in a token. That the key there is its own is proved when it is imported.
func (s Source) inToken(store []byte, issued, crls [][]byte, now time.Time) (*CA, error) {
	if s.Key != "" {
		return nil, fault.New(fault.Invalid, "the CA's key is in the file %s or in a token, and not in both", s.Key)
	}
	certs, err := keyfile.ParseCertificates(store)
	if err != nil {
		return nil, fmt.Errorf("CA certificate: %w", err)
	}
	chain, err := optional(s.Chain, keyfile.MaxFile)
	if err != nil {
		return nil, err
	}
	if chain != nil {
		above, err := keyfile.ParseCertificates(chain[0])
		if err != nil {
			return nil, fmt.Errorf("certificates above the CA: %w", err)
		}
		certs = append(certs, above...)
	}
	c := &CA{Token: s.Token, Certificate: certs[0]}
	c.Chain = keyfile.PathFrom(c.Certificate, certs)[1:]
	if err := c.check(now); err != nil {
		return nil, err
	}
	return newBook(c).finish(issued, crls)
}

// directory reads a CA's directory. Paths given beside it are the caller's, not below the directory.
func (s Source) directory(now time.Time) (*CA, error) {
	if s.Token != "" {
		return nil, fault.New(fault.Invalid, "%s is a directory with a key in a file; for a key in a token name the CA's certificate", s.CA)
	}
	if s.Issued != "" {
		return nil, fault.New(fault.Invalid, "certificates issued by %s are read from its newcerts; no bundle is needed", s.CA)
	}
	o := s.OpenSSL
	o.Dir, o.Password = s.CA, s.Password
	for _, set := range []struct {
		to   *string
		path string
	}{{&o.Key, s.Key}, {&o.Chain, s.Chain}, {&o.CRL, s.CRL}} {
		if set.path == "" {
			continue
		}
		path, err := filepath.Abs(set.path)
		if err != nil {
			return nil, fmt.Errorf("read CA: %w", err)
		}
		*set.to = path
	}
	return FromOpenSSL(o, now)
}

// optional reads a file that may not be asked for.
func optional(path string, limit int64) ([][]byte, error) {
	if path == "" {
		return nil, nil
	}
	data, err := readFile(path, limit)
	if err != nil {
		return nil, err
	}
	return [][]byte{data}, nil
}
