package setup

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
	"chancery/internal/upkeep/datadir"
)

// HoldIdentityRoot holds the root of identities in a node's directory against those of the authority. By that file the node's commands know
// the node, and a node that does not issue knows those that renew its certificates: with another authority's it would be well until they
// end. The file is the node's own word and the database's may be wrong, so it is replaced only where the node's own certificate was
// issued under what the database has, and refused otherwise.
func (s *Services) HoldIdentityRoot(ctx context.Context, dir datadir.Dir, logger *slog.Logger) error {
	text, err := keyfile.ReadFile(dir.IdentityRoot(), keyfile.MaxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the pinned identity root: %w", err)
	}
	pinned, _ := keyfile.ParseCertificates(text) // a damaged file holds none
	roots, err := s.Identity.RootCertificates(ctx)
	if err != nil {
		return fmt.Errorf("read the roots of identities: %w", err)
	}
	if len(roots) == 0 || haveOneOf(roots, pinned) {
		return nil
	}
	good := issuedUnder(dir.TLS(), roots)
	if good == nil {
		return fault.New(fault.Conflict, "%s holds a root of identities that the authority in the database has not, SHA-256 %s; the authority's is %s",
			dir.IdentityRoot(), prints(pinned), prints(roots)).
			WithHint("if the database is the right one, copy ca/identity-root.pem of another of its nodes here, once this shows the authority's SHA-256 there: " +
				"openssl x509 -noout -fingerprint -sha256 -in ca/identity-root.pem; if it is not, mend database_file in node.yaml")
	}
	if err := keyfile.ReplaceBeside(dir.IdentityRoot(), keyfile.EncodeCertificates(good), 0o644); err != nil {
		return fmt.Errorf("replace the root of identities of another authority, %s: %w", dir.IdentityRoot(), err)
	}
	logger.Warn("the root of identities in this node's directory was another authority's; it is replaced by the one that this node's own certificate is under",
		"file", dir.IdentityRoot(), "was", prints(pinned), "is", prints([]*x509.Certificate{good}))
	return nil
}

func haveOneOf(roots, pinned []*x509.Certificate) bool {
	return slices.ContainsFunc(pinned, func(p *x509.Certificate) bool { return slices.ContainsFunc(roots, p.Equal) })
}

// issuedUnder is the root that the certificate of a file with a key and a path was issued under, whether it has ended or not; nil where there
// is none, or no such file.
func issuedUnder(file string, roots []*x509.Certificate) *x509.Certificate {
	text, err := keyfile.ReadSecret(file, keyfile.MaxFile)
	if err != nil {
		return nil
	}
	defer clear(text)
	path, err := keyfile.ParseCertificates(text)
	if err != nil {
		return nil
	}
	above := x509.NewCertPool()
	for _, c := range path[1:] {
		above.AddCert(c)
	}
	for _, root := range roots {
		one := x509.NewCertPool()
		one.AddCert(root)
		_, err := path[0].Verify(x509.VerifyOptions{
			Roots: one, Intermediates: above, CurrentTime: path[0].NotBefore.Add(time.Second), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
		})
		if err == nil {
			return root
		}
	}
	return nil
}

// prints are the SHA-256 of certificates, for people.
func prints(all []*x509.Certificate) string {
	if len(all) == 0 {
		return "none"
	}
	texts := make([]string, len(all))
	for i, c := range all {
		texts[i] = fmt.Sprintf("%x", client.Fingerprint(c.Raw))
	}
	return strings.Join(texts, ", ")
}
