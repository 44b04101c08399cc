package recipe

import (
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
)

func (v *validation) certificates() {
	trust := len(v.recipe.Files) > 0 && !slices.ContainsFunc(v.recipe.Files, func(f File) bool { return ofCertificate(f.Content) })
	if len(v.recipe.Certificates) == 0 && !trust {
		v.add("certificates", "at least one is wanted, unless every file holds nothing but anchors, pinned and crls")
	}
	seen := map[string]bool{}
	for i := range v.recipe.Certificates {
		c := &v.recipe.Certificates[i]
		at := fmt.Sprintf("certificates[%d]", i)
		if !identifier.MatchString(c.id()) {
			v.add(at+".id", "%q must be 1 to 32 small letters, digits and _, a letter first", c.ID)
		}
		if seen[c.id()] {
			v.add(at+".id", "%q is there twice", c.id())
		}
		seen[c.id()] = true
		v.condition(at+".when", c.When)
		v.text(at+".profile", c.Profile, nil, checkProfileName)
		if c.Subject != "" {
			v.text(at+".subject", c.Subject, escapeDN, checkSubject)
		}
		for j, name := range c.Names {
			v.each(fmt.Sprintf("%s.names[%d]", at, j), name, checkName)
		}
		for j, usage := range c.Usages {
			_, err := cert.ParseExtKeyUsage(usage)
			v.problem(fmt.Sprintf("%s.usages[%d]", at, j), err)
		}
		v.announce(at, c)
		v.keys(at, c)
		v.used(at, c)
	}
}

func (v *validation) keys(at string, c *Certificate) {
	if len(c.Key) == 0 {
		v.add(at+".key", "at least one rule is wanted, such as algorithm: rsa-3072")
	}
	for i, rule := range c.Key {
		at := fmt.Sprintf("%s.key[%d]", at, i)
		v.condition(at+".when", rule.When)
		if rule.When == "" && i < len(c.Key)-1 {
			v.add(at, "the rules after it are never reached, since it has no condition; the first that holds is taken")
		}
		v.text(at+".algorithm", rule.Algorithm, nil, checkAlgorithm)
		if !slices.Contains([]string{"", "pkcs8", "traditional"}, rule.Encoding) {
			v.add(at+".encoding", "%q is not pkcs8 or traditional", rule.Encoding)
		}
		_, err := cert.ParseKeyUsage(rule.KeyUsages)
		v.problem(at+".key_usages", err)
	}
}

// used finds a certificate whose key or leaf is in no file: nobody could use it.
func (v *validation) used(at string, c *Certificate) {
	key, leaf := false, false
	for i := range v.recipe.Files {
		if f := &v.recipe.Files[i]; v.recipe.of(f) == c.id() {
			key = key || slices.Contains(f.Content, "key")
			leaf = leaf || slices.ContainsFunc(f.Content, func(s string) bool { return s == "leaf" || s == "path" || s == "path-reversed" })
		}
	}
	if !key || !leaf {
		v.add(at, "no file holds the key, or none the certificate, of %q, so that nobody can use it", c.id())
	}
}

// of is the certificate that a file's key, leaf and path are of.
func (r *Recipe) of(f *File) string {
	if f.Of == "" && len(r.Certificates) > 0 {
		return r.Certificates[0].id()
	}
	return f.Of
}

func (v *validation) directories() {
	for i, d := range v.recipe.Directories {
		at := fmt.Sprintf("directories[%d]", i)
		v.text(at+".path", d.Path, nil, func(value string) error { return checkPath("directory", value) })
		v.condition(at+".when", d.When)
		v.ownership(at, d.Owner, d.Group, d.Label)
		_, err := parseMode(d.Mode, 0o755, 0o755)
		v.problem(at+".mode", err)
		for j, other := range v.recipe.Directories[:i] {
			if other.Path == d.Path && exclusionMissing(other.When, d.When) {
				v.add(at+".path", "%s is directories[%d] already", d.Path, j)
			}
		}
	}
}

// exclusionMissing reports that two conditions hold together for certain; others are found when a host is known.
func exclusionMissing(a, b string) bool { return a == "" || b == "" || a == b }

func (v *validation) ownership(at, owner, group, label string) {
	for field, account := range map[string]string{"owner": owner, "group": group} {
		if account != "" {
			v.text(at+"."+field, account, nil, checkAccount)
		}
	}
	if label != "" {
		v.text(at+".label", label, nil, checkLabel)
	}
}

func (v *validation) files() {
	if len(v.recipe.Files) == 0 {
		v.add("files", "at least one is wanted")
	}
	for i := range v.recipe.Files {
		f := &v.recipe.Files[i]
		at := fmt.Sprintf("files[%d]", i)
		v.text(at+".path", f.Path, nil, func(value string) error { return checkPath("file", value) })
		v.condition(at+".when", f.When)
		v.ownership(at, f.Owner, f.Group, f.Label)
		if f.Of != "" && v.certificate(f.Of) == nil {
			v.add(at+".of", "there is no certificate %q; there are %s", f.Of, v.recipe.certificateIDs())
		}
		v.problem(at+".content", f.contentProblem())
		v.problem(at+".format", f.formatProblem())
		v.store(at, f)
		_, err := f.mode()
		v.problem(at+".mode", err)
		if slices.Contains(f.Content, "crls") && !v.recipe.Trust.CRLs {
			v.add(at+".content", "crls are wanted here and not fetched: set trust.crls")
		}
		for j, other := range v.recipe.Files[:i] {
			if other.Path == f.Path && exclusionMissing(other.When, f.When) {
				v.add(at+".path", "%s is files[%d] already", f.Path, j)
			}
		}
		for j, d := range v.recipe.Directories {
			if d.Path == f.Path && !f.sharesDirectory() {
				v.add(at+".path", "%s is directories[%d]", f.Path, j)
			}
		}
	}
}

// contents are what a file may hold.
var contents = []string{"key", "leaf", "path", "issuers", "path-reversed", "anchors", "pinned", "crls"}

// ofCertificate reports whether a content holds something of one certificate of the host's.
func ofCertificate(content []string) bool {
	return slices.ContainsFunc(content, func(c string) bool { return c != "anchors" && c != "pinned" && c != "crls" })
}

func (f *File) has(content string) bool { return slices.Contains(f.Content, content) }

func (f *File) contentProblem() error {
	if len(f.Content) == 0 {
		return fault.New(fault.Invalid, "a file holds at least one of %s", strings.Join(contents, ", "))
	}
	for i, c := range f.Content {
		if !slices.Contains(contents, c) {
			return fault.New(fault.Invalid, "%q is not one of %s", c, strings.Join(contents, ", "))
		}
		if slices.Index(f.Content, c) != i {
			return fault.New(fault.Invalid, "%q is there twice", c)
		}
	}
	for _, pair := range [][2]string{{"path", "leaf"}, {"path", "issuers"}, {"path", "path-reversed"}, {"path-reversed", "leaf"},
		{"path-reversed", "issuers"}} {
		if f.has(pair[0]) && f.has(pair[1]) {
			return fault.New(fault.Invalid, "%s and %s would put certificates there twice: path is the leaf and the issuers above it",
				pair[0], pair[1])
		}
	}
	if f.has("key") && f.has("crls") {
		return fault.New(fault.Invalid, "a key and CRLs in one file: CRLs are renewed daily, and the key would be written anew with them")
	}
	return nil
}

// formats are the forms of a file; the first is the default.
var formats = []string{"pem", "der", "pkcs12", "jks", "hashdir", "certdir", "nss"}

// sharesDirectory reports whether the file is a directory whose owner and mode the recipe may say, and in which others may
// have files.
func (f *File) sharesDirectory() bool { return f.Format == "certdir" || f.Format == "nss" }

func (f *File) format() string {
	if f.Format == "" {
		return formats[0]
	}
	return f.Format
}

func (f *File) formatProblem() error {
	switch f.format() {
	case "pem":
	case "der":
		if len(f.Content) != 1 || (!f.has("key") && !f.has("leaf")) {
			return fault.New(fault.Invalid, "der holds one thing, key or leaf; %s can be more than one", strings.Join(f.Content, ", "))
		}
	case "pkcs12", "jks":
		switch leaf := f.has("leaf") || f.has("path"); {
		case f.has("crls") || f.has("path-reversed"):
			return fault.New(fault.Invalid, "%s holds neither CRLs nor a path in another order", f.Format)
		case f.has("key") != leaf:
			return fault.New(fault.Invalid, "%s: a key entry is key with leaf or path; anchors alone make a trust store", f.Format)
		case !leaf && !f.has("anchors") && !f.has("pinned"):
			return fault.New(fault.Invalid, "%s: issuers alone are neither a key entry nor a trust store", f.Format)
		}
	case "hashdir":
		if c := f.other("anchors", "issuers", "pinned", "crls"); c != "" {
			return fault.New(fault.Invalid, "hashdir holds anchors, issuers, pinned and crls, which are found by their names' hashes; not %s", c)
		}
	case "certdir":
		if c := f.other("anchors", "issuers", "pinned"); c != "" {
			return fault.New(fault.Invalid, "certdir holds a file for each of anchors, issuers and pinned; not %s", c)
		}
	case "nss":
		switch leaf := f.has("leaf") || f.has("path"); {
		case f.has("crls") || f.has("path-reversed"):
			return fault.New(fault.Invalid, "nss takes neither a path in another order nor CRLs: a CRL that ends in the database refuses everybody, and nobody sees why")
		case f.has("key") != leaf:
			return fault.New(fault.Invalid, "nss: a key is imported with its certificate: key with leaf or path")
		}
	default:
		return fault.New(fault.Invalid, "%q is not one of %s", f.Format, strings.Join(formats, ", "))
	}
	return f.mergeProblem()
}

// other is a content that is none of some; empty where all are.
func (f *File) other(some ...string) string {
	for _, c := range f.Content {
		if !slices.Contains(some, c) {
			return c
		}
	}
	return ""
}

// mergeProblem refuses to merge what cannot be: what is placed in a file of somebody else's is trust, and never a key.
func (f *File) mergeProblem() error {
	if !f.Merge {
		return nil
	}
	if !slices.Contains([]string{"pem", "pkcs12", "jks"}, f.format()) {
		return fault.New(fault.Invalid, "merge is for pem, pkcs12 and jks; %s leaves what is not ours as it is anyway", f.format())
	}
	if c := f.other("anchors", "issuers", "pinned"); c != "" {
		return fault.New(fault.Invalid, "a file that is merged takes anchors, issuers and pinned, not %s: give that a file of its own", c)
	}
	return nil
}

// store judges what belongs to key stores only.
func (v *validation) store(at string, f *File) {
	isStore := f.Format == "pkcs12" || f.Format == "jks"
	if f.Format != "nss" && isStore != (f.PasswordFile != "") {
		v.add(at+".password_file", "pkcs12 and jks need the path of a file with their password, nss may have one, and no other format has one")
	}
	if f.TrustFlags != "" {
		if f.Format != "nss" {
			v.add(at+".trust_flags", "only nss has trust flags")
		}
		v.text(at+".trust_flags", f.TrustFlags, nil, checkTrustFlags)
	}
	if f.PasswordFile != "" {
		v.text(at+".password_file", f.PasswordFile, nil, func(value string) error { return checkPath("password file", value) })
		for j := range v.recipe.Files {
			if v.recipe.Files[j].Path == f.PasswordFile {
				v.add(at+".password_file", "%s is files[%d]", f.PasswordFile, j)
			}
		}
	}
	if f.Alias == "" {
		return
	}
	if !isStore && f.Format != "nss" {
		v.add(at+".alias", "only entries of pkcs12 and jks have an alias, and of nss a nickname")
	}
	v.text(at+".alias", f.Alias, nil, func(value string) error {
		if !plainName.MatchString(value) {
			return fault.New(fault.Invalid, "alias %q: letters, digits and ._-, at most 64", value)
		}
		return nil
	})
}

// secret reports whether the file holds a key.
func (f *File) secret() bool { return f.has("key") }

// mode is the file's mode. A key is read by its owner and its group at most, and nobody but the owner writes.
func (f *File) mode() (fs.FileMode, error) {
	if f.secret() {
		return parseMode(f.Mode, 0o600, 0o640)
	}
	if f.Format == "hashdir" {
		return parseMode(f.Mode, 0o755, 0o755)
	}
	return parseMode(f.Mode, 0o644, 0o644)
}

var trustFlags = regexp.MustCompile(`^[pPcCT]{0,5},[pPcCT]{0,5},[pPcCT]{0,5}$`)

// checkTrustFlags holds flags against certutil's -t: for TLS, for mail, for code.
func checkTrustFlags(value string) error {
	if !trustFlags.MatchString(value) {
		return fault.New(fault.Invalid, "trust flags %q: three groups of p, P, c, C and T, such as CT,, for the CAs of TLS servers and clients", value)
	}
	return nil
}

var octal = regexp.MustCompile(`^0?[0-7]{3}$`)

// parseMode reads an octal mode that has no bit beyond most.
func parseMode(text string, without, most fs.FileMode) (fs.FileMode, error) {
	if text == "" {
		return without, nil
	}
	n, err := strconv.ParseUint(text, 8, 16)
	switch {
	case err != nil || (!octal.MatchString(text) && n < 0o1000):
		return 0, fault.New(fault.Invalid, "mode %q is not three octal digits, such as 0640", text)
	case n >= 0o1000:
		return 0, fault.New(fault.Invalid, "mode %q has a setuid, setgid or sticky bit, which nothing that is placed has", text)
	case n&^uint64(most) != 0:
		return 0, fault.New(fault.Invalid, "mode %q gives more than %04o, which is the most here: %s", text, most, whyMode(most))
	case n&0o400 == 0:
		return 0, fault.New(fault.Invalid, "mode %q: the owner cannot read", text)
	case most == 0o755 && (n&0o444)>>2&^n != 0:
		return 0, fault.New(fault.Invalid, "mode %q: a directory that can be read and not entered; 0755, 0750 or 0700 would pass", text)
	}
	return fs.FileMode(n), nil
}

func whyMode(most fs.FileMode) string {
	switch most {
	case 0o640:
		return "a key is not for others to read, and nothing that is placed can be run"
	case 0o755:
		return "whoever writes to a directory can put another file in place of ours"
	}
	return "whoever writes to it decides what is trusted, and nothing that is placed can be run"
}

// The checks of filled texts, when a recipe is read and again on the host.

func checkAccount(value string) error {
	if !accountName.MatchString(value) {
		return fault.New(fault.Invalid, "%q is no user or group: letters, digits and _.-, at most 32, none of -. and digits first", value)
	}
	return nil
}

func checkUserAndGroup(value string) error {
	user, group, both := strings.Cut(value, ":")
	if err := checkAccount(user); err != nil {
		return err
	}
	if both {
		return checkAccount(group)
	}
	return nil
}

func checkLabel(value string) error {
	if value != "" && !selinuxLabel().MatchString(value) {
		return fault.New(fault.Invalid, "label %q is no SELinux context such as system_u:object_r:cert_t:s0", value)
	}
	return nil
}

func checkAddress(value string) error {
	if !isAddress(value) {
		return fault.New(fault.Invalid, "address %q is not HOST:PORT, such as localhost:443 or [::1]:443", value)
	}
	return nil
}

func checkHost(value string) error {
	if !isHost(value) {
		return fault.New(fault.Invalid, "%q is no DNS name and no address", value)
	}
	return nil
}

func checkAlgorithm(value string) error {
	_, err := keyfile.ParseAlgorithm(value)
	return err
}

func checkProfileName(value string) error {
	if !plainName.MatchString(value) || strings.ToLower(value) != value {
		return fault.New(fault.Invalid, "profile %q: small letters, digits and hyphens, such as server", value)
	}
	return nil
}

// within reports whether a path is a directory's or below it.
func within(directory, name string) bool {
	return name == directory || strings.HasPrefix(name, strings.TrimSuffix(path.Clean(directory), "/")+"/")
}
