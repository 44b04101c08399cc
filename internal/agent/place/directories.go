package place

import (
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"path"
	"slices"
	"strings"

	"chancery/internal/pki/keyfile"
)

// fileStem names a certificate that is trusted by what it is, so that it keeps its name when others come and go.
func fileStem(c *x509.Certificate) string {
	kind := "ca"
	if !c.IsCA {
		kind = "peer" // pinned
	}
	return kind + "-" + fingerprint(c.Raw)[:16]
}

// hashed is a directory in which OpenSSL finds CA certificates and CRLs by the hashes of their names: those of today, and
// those that programs built on OpenSSL before 1.0 look up.
func (r *rendering) hashed(set *Set) error {
	f := r.file
	if !slices.ContainsFunc(set.Directories, func(d Directory) bool { return d.Path == f.Path }) {
		set.Directories = append(set.Directories,
			Directory{Path: f.Path, Mode: f.Mode, Owner: f.Owner, Group: f.Group, Label: f.Label})
	}
	if _, err := r.trusted(); err != nil && !slices.Equal(f.Content, []string{"crls"}) {
		return err
	}
	var targets []keyfile.HashTarget
	contents := map[string][]byte{}
	for _, content := range f.Content {
		if content == "crls" {
			lists, err := r.lists()
			if err != nil {
				return err
			}
			for _, list := range lists {
				// Named by its issuer's name and key, so that the next CRL takes the place of this one.
				name := fmt.Sprintf("crl-%x", sha256.Sum256(slices.Concat(list.RawIssuer, list.AuthorityKeyId)))[:20] + ".pem"
				contents[name] = encodeCRL(list)
				targets = append(targets, keyfile.HashTarget{File: name, CRL: list})
			}
			continue
		}
		certificates, err := r.certificates(content)
		if err != nil {
			return err
		}
		for _, c := range certificates {
			name := fileStem(c) + ".pem"
			contents[name] = keyfile.EncodeCertificates(c)
			targets = append(targets, keyfile.HashTarget{File: name, Certificate: c})
		}
	}
	return r.hashFiles(set, targets, contents)
}

func (r *rendering) hashFiles(set *Set, targets []keyfile.HashTarget, contents map[string][]byte) error {
	f := r.file
	slices.SortFunc(targets, func(a, b keyfile.HashTarget) int { return cmp.Compare(a.File, b.File) })
	targets = slices.CompactFunc(targets, func(a, b keyfile.HashTarget) bool { return a.File == b.File })
	links, err := keyfile.HashLinks(targets, true)
	if err != nil {
		return err
	}
	for _, t := range targets {
		set.Files = append(set.Files, File{
			Path: path.Join(f.Path, t.File), Data: contents[t.File], Mode: f.Mode &^ 0o111,
			Owner: f.Owner, Group: f.Group, Label: f.Label,
		})
	}
	for _, l := range links {
		set.Files = append(set.Files, File{Path: path.Join(f.Path, l.Name), Link: l.File})
	}
	return nil
}

// listed is a directory with a file for each certificate, as systems keep those that their operator trusts. Others may have
// files there, too, and the directory is not ours to change. Each name says whose certificate it is, and stays the same when
// others come and go.
func (r *rendering) listed(set *Set) error {
	all, err := r.trusted()
	if err != nil {
		return err
	}
	f := r.file
	for _, c := range all {
		set.Files = append(set.Files, File{
			Path: path.Join(f.Path, listedName(c)), Data: keyfile.EncodeCertificates(c), Mode: f.Mode,
			Owner: f.Owner, Group: f.Group, Label: f.Label,
		})
	}
	return nil
}

// listedName is a file's name that neither update-ca-certificates nor a shell script around it stumbles over. It ends in
// .crt, which Debian's wants and others take.
func listedName(c *x509.Certificate) string {
	subject := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, cmp.Or(c.Subject.CommonName, strings.Join(c.Subject.Organization, "-")))
	subject = strings.Join(strings.FieldsFunc(subject, func(r rune) bool { return r == '-' }), "-")
	return fmt.Sprintf("chancery-%.40s-%s.crt", cmp.Or(subject, "ca"), fingerprint(c.Raw)[:8])
}
