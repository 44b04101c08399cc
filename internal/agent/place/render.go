package place

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"path"
	"slices"
	"strings"

	"chancery/internal/agent/probe"
	"chancery/internal/agent/recipe"
	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
)

// Render makes the files of a plan from what it is to hold. Materials are by the ID of their certificate; passwords
// returns the content of a key store's password file. The set bears the recipe's name.
func Render(
	plan *recipe.Plan, materials map[string]*probe.Material, passwords func(path string) ([]byte, error),
) (Set, error) {
	set := Set{Name: plan.Recipe}
	for _, d := range plan.Directories {
		set.Directories = append(set.Directories, Directory{
			Path: d.Path, Mode: d.Mode, Owner: d.Owner, Group: d.Group, Label: d.Label,
		})
	}
	for _, f := range plan.Files {
		m := materials[f.Of]
		if m == nil {
			return Set{}, fault.New(fault.Invalid, "file %s is of the certificate %q, for which there is nothing to place",
				f.Path, f.Of)
		}
		r := &rendering{plan: plan, file: f, material: m, passwords: passwords}
		if err := r.into(&set); err != nil {
			return Set{}, fmt.Errorf("file %s: %w", f.Path, err)
		}
	}
	return set, nil
}

// rendering is one file of a plan in the making.
type rendering struct {
	plan      *recipe.Plan
	file      recipe.PlannedFile
	material  *probe.Material
	passwords func(path string) ([]byte, error)
}

func (r *rendering) into(set *Set) (err error) {
	f := File{
		Path: r.file.Path, Mode: r.file.Mode, Owner: r.file.Owner, Group: r.file.Group, Label: r.file.Label,
	}
	switch r.file.Format {
	case "", "pem":
		f.Data, err = r.pem()
	case "der":
		f.Data, err = r.der()
	case "pkcs12", "jks":
		f.Data, f.Same, err = r.store()
	case "hashdir":
		return r.hashed(set)
	default:
		return fault.New(fault.Invalid, "the format %q is not known; pem, der, pkcs12, jks or hashdir would pass", r.file.Format)
	}
	set.Files = append(set.Files, f)
	return err
}

// pem is what the recipe names, in its order, and nothing outside of PEM blocks. A certificate stands in a file once:
// several consumers load the same one twice as two.
func (r *rendering) pem() ([]byte, error) {
	var out []byte
	var seen []*x509.Certificate
	for _, content := range r.file.Content {
		var part []byte
		var err error
		switch content {
		case "key":
			part, err = r.key()
		case "crls":
			part, err = r.crls()
		default:
			var all []*x509.Certificate
			all, err = r.certificates(content)
			again := func(c *x509.Certificate) bool { return slices.ContainsFunc(seen, c.Equal) }
			all = slices.DeleteFunc(slices.Clone(all), again)
			seen = append(seen, all...)
			part = keyfile.EncodeCertificates(all...)
		}
		if err != nil {
			return nil, err
		}
		out = append(out, part...)
	}
	if len(out) == 0 {
		return nil, fault.New(fault.Invalid, "there is nothing to place as %s, and no empty file is placed",
			strings.Join(r.file.Content, ", "))
	}
	return out, nil
}

// certificates are those of one word of a recipe's content. A leaf right below the root has no issuers to give; none of
// anything else is refused.
func (r *rendering) certificates(content string) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	m := r.material
	if content != "anchors" && len(m.Path) == 0 {
		return nil, fault.New(fault.Invalid, "there is no certificate to place")
	}
	switch content {
	case "leaf":
		all = m.Path[:1]
	case "path":
		all = m.Path
	case "path-reversed":
		all = slices.Clone(m.Path)
		slices.Reverse(all)
	case "issuers":
		return m.Path[1:], nil
	case "anchors":
		all = slices.Clone(m.Anchors)
		if r.plan.Trust.Intermediates && len(all) > 0 {
			all = append(all, m.Issuers...)
		}
		all = distinct(all)
	default:
		return nil, fault.New(fault.Invalid, "the content %q is not known", content)
	}
	if len(all) == 0 {
		return nil, fault.New(fault.Invalid, "there is nothing to place as %s, and no empty file is placed", content)
	}
	return all, nil
}

func distinct(all []*x509.Certificate) []*x509.Certificate {
	var once []*x509.Certificate
	for _, c := range all {
		if !slices.ContainsFunc(once, c.Equal) {
			once = append(once, c)
		}
	}
	return once
}

// key is the private key, in the encoding that the plan says.
func (r *rendering) key() ([]byte, error) {
	if r.material.Key == nil {
		return nil, fault.New(fault.Invalid, "there is no key to place")
	}
	for _, c := range r.plan.Certificates {
		if c.ID == r.file.Of && c.Encoding == "traditional" {
			return keyfile.EncodeTraditional(r.material.Key)
		}
	}
	return keyfile.EncodePKCS8(r.material.Key)
}

func (r *rendering) lists() ([]*x509.RevocationList, error) {
	var all []*x509.RevocationList
	for _, der := range r.material.CRLs {
		list, err := x509.ParseRevocationList(der)
		if err != nil {
			return nil, fmt.Errorf("read a CRL: %w", err)
		}
		all = append(all, list)
	}
	if len(all) == 0 {
		return nil, fault.New(fault.Invalid, "there is no CRL to place, and no empty file is placed")
	}
	return all, nil
}

func (r *rendering) crls() ([]byte, error) {
	lists, err := r.lists()
	if err != nil {
		return nil, err
	}
	var out []byte
	for _, list := range lists {
		out = append(out, encodeCRL(list)...)
	}
	return out, nil
}

func encodeCRL(list *x509.RevocationList) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: list.Raw})
}

// der is the one thing that such a file can hold.
func (r *rendering) der() ([]byte, error) {
	if len(r.file.Content) != 1 {
		return nil, fault.New(fault.Invalid, "a DER file holds one thing, not %d", len(r.file.Content))
	}
	text, err := r.pem()
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(text)
	if block == nil || len(rest) > 0 {
		return nil, fault.New(fault.Invalid, "a DER file holds one thing, and %s is more than one", r.file.Content[0])
	}
	return block.Bytes, nil
}

// store is a key store. Its bytes differ each time, so that what is there is compared entry by entry.
func (r *rendering) store() ([]byte, func([]byte) bool, error) {
	password, err := r.passwords(r.file.PasswordFile)
	if err != nil {
		return nil, nil, fmt.Errorf("read the password: %w", err)
	}
	password = bytes.TrimRight(password, "\r\n")
	entries, err := r.entries()
	if err != nil {
		return nil, nil, err
	}
	encode, magic := keyfile.EncodePKCS12, false
	if r.file.Format == "jks" {
		magic = true
		encode = func(e []keyfile.Entry, password []byte) ([]byte, error) { return keyfile.EncodeJKS(e, password, nil) }
	}
	data, err := encode(entries, password)
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
		if key != nil && content != "anchors" {
			key.Chain = append(key.Chain, certificates...)
			continue
		}
		for _, c := range certificates {
			trusted = append(trusted, keyfile.Entry{Alias: fileStem(c), Chain: []*x509.Certificate{c}})
		}
	}
	if key == nil {
		return trusted, nil
	}
	return append([]keyfile.Entry{*key}, trusted...), nil
}

// fileStem names a CA certificate by what it is, so that it keeps its name when others come and go.
func fileStem(c *x509.Certificate) string { return fmt.Sprintf("ca-%x", sha256.Sum256(c.Raw))[:19] }

// hashed is a directory in which OpenSSL finds CA certificates and CRLs by the hashes of their names: those of today, and
// those that programs built on OpenSSL before 1.0 look up.
func (r *rendering) hashed(set *Set) error {
	f := r.file
	if !slices.ContainsFunc(set.Directories, func(d Directory) bool { return d.Path == f.Path }) {
		set.Directories = append(set.Directories,
			Directory{Path: f.Path, Mode: f.Mode, Owner: f.Owner, Group: f.Group, Label: f.Label})
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
