package place

import (
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

// Sources are what rendering asks for beside a plan and its materials.
type Sources struct {
	// Password returns the content of a key store's password file.
	Password func(path string) ([]byte, error)
	// Run runs a program with its arguments and returns what it prints; for NSS databases, which NSS's own tools write.
	Run func(args ...string) ([]byte, error)
	// Scratch is a directory of the agent's own, open to nobody else, in which such databases are made.
	Scratch string
}

// Render makes the files of a plan from what it is to hold. Materials are by the ID of their certificate; that of "" is what
// files of trust alone are made of where the plan has no certificate. The set bears the recipe's name.
func Render(plan *recipe.Plan, materials map[string]*probe.Material, sources Sources) (Set, error) {
	set := Set{Name: plan.Recipe}
	for _, d := range plan.Directories {
		set.Directories = append(set.Directories, Directory{
			Path: d.Path, Mode: d.Mode, Owner: d.Owner, Group: d.Group, Label: d.Label,
		})
	}
	for _, f := range plan.Files {
		m := materialOf(plan, f, materials)
		if m == nil {
			return Set{}, fault.New(fault.Invalid, "file %s is of the certificate %q, for which there is nothing to place",
				f.Path, f.Of)
		}
		r := &rendering{plan: plan, file: f, material: m, Sources: sources}
		if err := r.into(&set); err != nil {
			return Set{}, fmt.Errorf("file %s: %w", f.Path, err)
		}
	}
	return set, nil
}

// materialOf is what a file is made of. Trust is the same for all certificates of a plan, and for a plan without any.
func materialOf(plan *recipe.Plan, f recipe.PlannedFile, materials map[string]*probe.Material) *probe.Material {
	if m := materials[f.Of]; m != nil || !f.TrustOnly() {
		return m
	}
	for _, c := range plan.Certificates {
		if m := materials[c.ID]; m != nil {
			return m
		}
	}
	return materials[""]
}

// rendering is one file of a plan in the making.
type rendering struct {
	Sources
	plan     *recipe.Plan
	file     recipe.PlannedFile
	material *probe.Material
}

func (r *rendering) into(set *Set) (err error) {
	f := File{
		Path: r.file.Path, Mode: r.file.Mode, Owner: r.file.Owner, Group: r.file.Group, Label: r.file.Label,
	}
	if r.file.Merge {
		f.Share, err = r.merged()
		set.Files = append(set.Files, f)
		return err
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
	case "certdir":
		return r.listed(set)
	case "nss":
		return r.database(set)
	default:
		return fault.New(fault.Invalid, "the format %q is not known; pem, der, pkcs12, jks, hashdir, certdir or nss would pass", r.file.Format)
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
	if content != "anchors" && content != "pinned" && len(m.Path) == 0 {
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
	case "pinned": // none is pinned as long as no peer has announced one
		return distinct(m.Pinned), nil
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

// Withdraw adds to a set what takes ours out of the stores of an earlier plan that the set has no more: a trust store that
// moved does not go on trusting at its old place.
func Withdraw(set *Set, before *recipe.Plan, sources Sources) error {
	for _, f := range before.Files {
		if !f.Shared() {
			continue
		}
		paths := []string{f.Path}
		if f.Format == "nss" {
			paths = nil
			for _, name := range nssFiles {
				paths = append(paths, path.Join(f.Path, name))
			}
		}
		if slices.ContainsFunc(set.Files, func(now File) bool { return now.Path == paths[0] }) {
			continue
		}
		r := &rendering{plan: before, file: f, Sources: sources}
		password, err := r.password()
		if err != nil {
			return fmt.Errorf("file %s: %w", f.Path, err)
		}
		share := &Share{Leave: true, Keep: true}
		share.Merge = func(there [][]byte, ours []string, _ bool) (Merged, error) {
			return r.without(there, ours, password)
		}
		for _, p := range paths {
			set.Files = append(set.Files, File{Path: p, Mode: f.Mode, Owner: f.Owner, Group: f.Group, Label: f.Label, Share: share})
		}
	}
	return nil
}

// without takes what is ours out of a store; what was there before us stays, in a database with the flags that it had. A file
// in which nothing is left goes.
func (r *rendering) without(there [][]byte, ours []string, password []byte) (Merged, error) {
	none := Merged{Files: make([][]byte, len(there))}
	if there[0] == nil {
		return none, nil
	}
	if r.file.Format == "nss" {
		d := &nssDatabase{Sources: r.Sources, at: r.Scratch, path: r.file.Path, password: password, leaves: true}
		want, err := d.merge(there, ours, false)
		return Merged{Files: want.Files}, err
	}
	want, err := r.mergeInto(there[0], newLedger(ours, ""), nil, password, true)
	if err != nil {
		return none, err
	}
	left := certificatesIn(want.Files[0])
	if r.file.Format == "pkcs12" || r.file.Format == "jks" {
		if left, err = keyfile.TrustedIn(want.Files[0], password); err != nil {
			return none, err
		}
	}
	if len(left) == 0 && len(ours) > 0 {
		return none, nil
	}
	return Merged{Files: want.Files}, nil
}
