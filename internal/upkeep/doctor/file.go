package doctor

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"os"
	"time"

	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/upkeep/finding"
)

// soon is how long before its end a certificate is worth a warning.
const soon = 30 * 24 * time.Hour

// File looks at a file with certificates, with a key, or with both. It needs no node.
func File(path string, now time.Time) finding.Seq {
	return finding.Run(map[string]finding.Look{"file": func(tell func(finding.Finding)) error {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		stat, err := os.Stat(path)
		if err != nil {
			return err
		}
		certificates, certErr := keyfile.ParseCertificates(text)
		key, keyErr := keyfile.ParsePrivateKey(text, nil)
		if certErr != nil && keyErr != nil {
			if bytes.Contains(text, []byte("PRIVATE KEY")) {
				return fmt.Errorf("%s: %w", path, keyErr)
			}
			return fmt.Errorf("%s: %w", path, certErr)
		}
		if keyErr == nil {
			lookAtKeyMode(path, stat.Mode(), tell)
			if certErr == nil {
				lookAtPair(path, keyfile.CheckPair(key.Public(), certificates[0]), tell)
			}
		}
		if certErr == nil {
			lookAtOrder(path, certificates, tell)
			for _, c := range certificates {
				lookAtCertificate(path, c, now, tell)
			}
		}
		return nil
	}}, "file")
}

func lookAtKeyMode(path string, mode os.FileMode, tell func(finding.Finding)) {
	f := finding.Finding{Level: finding.OK, Check: "file.mode", Object: path, Message: fmt.Sprintf("it holds a private key and has mode %04o", mode.Perm())}
	if mode.Perm()&0o007 != 0 {
		f.Level, f.Hint = finding.Error, "re-key it, since anybody could read it, then chmod o= "+path
	}
	tell(f)
}

func lookAtPair(path string, err error, tell func(finding.Finding)) {
	if err != nil {
		tell(finding.Finding{Level: finding.Error, Check: "file.pair", Object: path, Message: err.Error()})
		return
	}
	tell(finding.Finding{Level: finding.OK, Check: "file.pair", Object: path, Message: "the key belongs to the first certificate"})
}

// lookAtOrder wants each certificate followed by its issuer: servers send them as they stand, and many clients do not sort.
func lookAtOrder(path string, certificates []*x509.Certificate, tell func(finding.Finding)) {
	for i := 1; i < len(certificates); i++ {
		if !bytes.Equal(certificates[i-1].RawIssuer, certificates[i].RawSubject) {
			tell(finding.Finding{
				Level: finding.Warning, Check: "file.order", Object: path,
				Message: fmt.Sprintf("certificate %d (%s) is not the issuer of the one before it; as a path, leaf first, it would be", i+1, certificates[i].Subject),
			})
			return
		}
	}
	if len(certificates) > 1 {
		tell(finding.Finding{Level: finding.OK, Check: "file.order", Object: path, Message: fmt.Sprintf("a path of %d certificates, leaf first", len(certificates))})
	}
}

func lookAtCertificate(path string, c *x509.Certificate, now time.Time, tell func(finding.Finding)) {
	f := finding.Finding{Level: finding.OK, Check: "file.validity", Object: path, Message: fmt.Sprintf("%s: valid until %s", c.Subject, c.NotAfter.UTC().Format(time.RFC3339))}
	switch {
	case now.After(c.NotAfter):
		f.Level, f.Message = finding.Error, fmt.Sprintf("%s: expired on %s", c.Subject, c.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(c.NotBefore):
		f.Level, f.Message = finding.Error, fmt.Sprintf("%s: not valid before %s; libvirt stops over it", c.Subject, c.NotBefore.UTC().Format(time.RFC3339))
	case c.NotAfter.Sub(now) < soon:
		f.Level, f.Message = finding.Warning, fmt.Sprintf("%s: ends in %s", c.Subject, cert.Duration(c.NotAfter.Sub(now).Round(time.Hour)))
	}
	tell(f)
	if err := cert.CheckPublicKey(c.PublicKey); err != nil {
		tell(finding.Finding{Level: finding.Error, Check: "file.key", Object: path, Message: fmt.Sprintf("%s: %v", c.Subject, err), Hint: "re-key it"})
	}
	if c.IsCA {
		return
	}
	names := len(c.DNSNames) + len(c.IPAddresses) + len(c.EmailAddresses) + len(c.URIs)
	server := len(c.ExtKeyUsage) == 0
	for _, u := range c.ExtKeyUsage {
		server = server || u == x509.ExtKeyUsageServerAuth || u == x509.ExtKeyUsageAny
	}
	if server && names == 0 {
		tell(finding.Finding{
			Level: finding.Warning, Check: "file.names", Object: path,
			Message: fmt.Sprintf("%s: it has no subjectAltName; Go, Java and browsers do not take a host name from the common name", c.Subject),
			Hint:    "name the host in the template as dns_name too",
		})
	}
}
