package place

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"chancery/internal/agent/probe"
	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
)

// nssFiles are those of a database of NSS 3.12 and later (sql:), which are changed together. The journals are SQLite's: one
// that is there belongs to a program that writes now, or did when it ended, and the database is nothing without it.
var nssFiles = []string{"cert9.db", "key4.db", "pkcs11.txt", "cert9.db-journal", "key4.db-journal"}

// nssDatabase is a database in the making. NSS's own tools make it, in a directory of ours: the formats of its files are
// nobody else's to write. What lies at the consumer's is changed by the file layer, all of it together.
type nssDatabase struct {
	Sources
	at       string // the directory in which it is made, of the database and of the files that the tools are given
	path     string // where the consumer has it, for messages and for what the database says of itself
	password []byte
	identity *keyfile.Entry
	trusted  []nssTrusted
	leaves   bool // nothing in it is to be ours any more
	told     []string
}

// nssTrusted is a certificate to be in the database, with certutil's trust flags.
type nssTrusted struct {
	certificate *x509.Certificate
	flags       string
}

// defaultTrustFlags makes a CA one of TLS servers and clients. It says nothing of mail and of code.
const (
	defaultTrustFlags = "CT,,"
	pinnedTrustFlags  = "P,,"
)

// database is an NSS database. It is always shared: what is in it and is not ours stays.
func (r *rendering) database(set *Set) error {
	d := &nssDatabase{Sources: r.Sources, at: r.Scratch, path: r.file.Path}
	var err error
	if d.password, err = r.password(); err != nil {
		return err
	}
	if r.file.Secret() {
		if r.material.Key == nil || len(r.material.Path) == 0 {
			return fault.New(fault.Invalid, "there is no key to place, or no certificate")
		}
		d.identity = &keyfile.Entry{Alias: cmp.Or(r.file.Alias, r.plan.Recipe), Key: r.material.Key, Chain: r.material.Path[:1]}
	}
	for _, content := range r.file.Content {
		var some []*x509.Certificate
		flags := ",,"
		switch content {
		case "key", "leaf":
		case "path":
			some = r.material.Path[1:]
		case "anchors":
			flags = cmp.Or(r.file.TrustFlags, defaultTrustFlags)
			some, err = r.certificates(content)
		case "pinned":
			flags = pinnedTrustFlags
			some, err = r.certificates(content)
		default:
			some, err = r.certificates(content)
		}
		if err != nil {
			return err
		}
		for _, c := range some {
			d.trust(c, flags)
		}
	}
	share := &Share{Keep: !r.file.Secret(), Merge: d.merge}
	for _, name := range nssFiles {
		set.Files = append(set.Files, File{
			Path: path.Join(r.file.Path, name), Mode: r.file.Mode, Owner: r.file.Owner, Group: r.file.Group, Label: r.file.Label, Share: share,
		})
	}
	return nil
}

// trust adds a certificate once. One that is an issuer of the path and an anchor has the anchor's flags. A host need not pin
// itself, and could not under two nicknames: NSS has one for each subject.
func (d *nssDatabase) trust(c *x509.Certificate, flags string) {
	if d.identity != nil && bytes.Equal(c.RawSubject, d.identity.Chain[0].RawSubject) {
		return
	}
	at := slices.IndexFunc(d.trusted, func(t nssTrusted) bool { return t.certificate.Equal(c) })
	switch {
	case at < 0:
		d.trusted = append(d.trusted, nssTrusted{c, flags})
	case d.trusted[at].flags == ",,":
		d.trusted[at].flags = flags
	}
}

// The kinds of entries that the record keeps of a database: "identity NICKNAME FINGERPRINT", "certificate FINGERPRINT", and
// "all DIGEST" of what was wanted, by which a database that nobody touched is known to need nothing.
const (
	nssIdentity    = "identity "
	nssCertificate = "certificate "
	nssAll         = "all "
)

func (d *nssDatabase) digest() string {
	var text strings.Builder
	if d.identity != nil {
		fmt.Fprintln(&text, d.identity.Alias, fingerprint(d.identity.Chain[0].Raw))
	}
	for _, t := range d.trusted {
		fmt.Fprintln(&text, t.flags, fingerprint(t.certificate.Raw))
	}
	return nssAll + fingerprint([]byte(text.String()))
}

// merge is a Share's.
func (d *nssDatabase) merge(there [][]byte, ours []string, untouched bool) (out Merged, err error) {
	if err := wholeNSS(there, d.path); err != nil {
		return Merged{}, err
	}
	out.Files = make([][]byte, len(nssFiles)) // without journals, which were empty if they were there
	copy(out.Files, there[:3])
	if untouched && slices.Contains(ours, d.digest()) {
		out.Entries = ours
		return out, nil
	}
	// Whatever an agent that was killed in here left, goes, too: a key and a password are among it.
	defer func() { err = errors.Join(err, os.RemoveAll(d.at)) }()
	if out.Entries, err = d.make(there[:3], ours); err != nil {
		return Merged{}, err
	}
	out.Told = d.told
	for i, name := range nssFiles[:2] {
		if out.Files[i], err = os.ReadFile(filepath.Join(d.at, "db", name)); err != nil && !(errors.Is(err, fs.ErrNotExist) && there[i] == nil) {
			return Merged{}, err
		}
	}
	if there[2] == nil && !d.leaves {
		out.Files[2], err = d.configuration()
	} else {
		err = nil
	}
	return out, err
}

// wholeNSS refuses what is no database by itself.
func wholeNSS(there [][]byte, path string) error {
	for i, name := range nssFiles[3:] {
		if len(there[3+i]) > 0 {
			return fault.New(fault.Conflict, "%s is there: a program writes to the database now, or did when it ended, and it is not whole", name).
				WithHint("certutil -L -d sql:%s mends it, once no program writes there", path)
		}
	}
	for i, name := range nssFiles[:2] {
		if isWAL(there[i]) {
			return fault.New(fault.Conflict, "%s is in SQLite's WAL mode, in which NSS never makes it: what was written last lies in %s-wal", name, name).
				WithHint("sqlite3 %s/%s 'PRAGMA journal_mode=DELETE', once no program has it open", path, name)
		}
	}
	if there[0] == nil && there[1] != nil {
		return fault.New(fault.Conflict, "key4.db is there without cert9.db: that is no database").WithHint("move it away, or bring cert9.db back")
	}
	return nil
}

// make makes the database from what is there, and says what is ours in it.
func (d *nssDatabase) make(there [][]byte, ours []string) ([]string, error) {
	if d.Run == nil || d.at == "" {
		return nil, fault.New(fault.Internal, "an NSS database is made by NSS's tools, and there is none to run them")
	}
	if err := d.begin(there); err != nil {
		return nil, err
	}
	has, err := readNSS(filepath.Join(d.at, "db"))
	if err != nil {
		return nil, err
	}
	l := newLedger(ours, nssCertificate)
	entries := []string{d.digest()}
	identity, err := d.putIdentity(has, ours)
	if err != nil {
		return nil, err
	}
	if identity != "" {
		entries = append(entries, identity)
	}
	more, err := d.putTrusted(l, has)
	if err != nil {
		return nil, err
	}
	entries = append(entries, more...)
	slices.Sort(entries)
	return entries, d.verify(l)
}

// begin lays out the directory: the database as it is, or a new one.
func (d *nssDatabase) begin(there [][]byte) error {
	db := filepath.Join(d.at, "db")
	if err := os.RemoveAll(d.at); err != nil {
		return err
	}
	if err := os.MkdirAll(db, 0o700); err != nil {
		return err
	}
	if len(d.password) > 0 {
		if err := os.WriteFile(d.passwordFile(), append(slices.Clone(d.password), '\n'), 0o600); err != nil {
			return err
		}
	}
	// The third, pkcs11.txt, names libraries to load, and the tools would load them as us: whoever runs the consumer may write
	// there. It is not brought along, and stays as it is.
	for i, name := range nssFiles[:2] {
		if there[i] == nil {
			continue
		}
		if err := os.WriteFile(filepath.Join(db, name), there[i], 0o600); err != nil {
			return err
		}
	}
	if there[0] == nil {
		words := []string{"-N"}
		if len(d.password) == 0 {
			words = append(words, "--empty-password")
		}
		if _, err := d.certutil(words...); err != nil {
			return fmt.Errorf("make the database: %w", err)
		}
		return nil
	}
	for i, name := range nssFiles[:2] {
		if there[i] == nil {
			continue
		}
		if err := checkNSS(filepath.Join(db, name)); err != nil {
			return err
		}
	}
	out, err := d.certutil("-K")
	switch {
	case err == nil || bytes.Contains(out, []byte("no keys found")): // of which certutil makes an error
		return nil
	case bytes.Contains(out, []byte("SEC_ERROR_BAD_PASSWORD")):
		where := "there is no password file, and it has a password"
		if len(d.password) > 0 {
			where = "the password is wrong"
		}
		return fault.New(fault.Invalid, "the database cannot be opened: %s", where).WithHint("name the file with its password; certutil -K -d sql:%s -f FILE tries it", d.path)
	}
	return fmt.Errorf("open the database: %w", err)
}

// configuration is a new database's own, which names the place that it will be at. NSS does without, and its tools do not make
// one for whoever only reads.
func (d *nssDatabase) configuration() ([]byte, error) {
	db := filepath.Join(d.at, "db")
	text, err := os.ReadFile(filepath.Join(db, "pkcs11.txt"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return bytes.ReplaceAll(text, []byte("sql:"+db), []byte("sql:"+d.path)), err
}

func (d *nssDatabase) passwordFile() string { return filepath.Join(d.at, "password") }

// certutil runs certutil on the database. A password is in a file, and never an argument.
func (d *nssDatabase) certutil(words ...string) ([]byte, error) {
	words = append([]string{"certutil"}, append(words, "-d", "sql:"+filepath.Join(d.at, "db"))...)
	if len(d.password) > 0 {
		words = append(words, "-f", d.passwordFile())
	}
	out, err := d.Run(words...)
	if errors.Is(err, probe.ErrNoCommand) {
		err = fault.New(fault.Conflict, "%w: an NSS database is changed by NSS's own tools", err).WithHint("apt install libnss3-tools; or dnf install nss-tools")
	}
	return out, err
}

// putIdentity brings the key and its certificate into the database under their nickname, and takes out those of before.
func (d *nssDatabase) putIdentity(has []nssEntry, ours []string) (string, error) {
	var stays bool
	for _, entry := range ours {
		rest, is := strings.CutPrefix(entry, nssIdentity)
		if !is {
			continue
		}
		nickname, print, _ := strings.Cut(rest, " ")
		at := slices.IndexFunc(has, func(e nssEntry) bool { return e.nickname == nickname && fingerprint(e.der) == print })
		if at < 0 {
			continue // somebody took it out
		}
		if w := d.identity; w != nil && w.Alias == nickname && print == fingerprint(w.Chain[0].Raw) && d.hasKey(nickname) {
			stays = true
			continue
		}
		if _, err := d.certutil("-F", "-n", nickname); err != nil { // the key, with its certificate
			if _, err = d.certutil("-D", "-n", nickname); err != nil {
				return "", fmt.Errorf("take %s out: %w", nickname, err)
			}
		}
		has = slices.Delete(slices.Clone(has), at, at+1)
	}
	if d.identity == nil {
		return "", nil
	}
	leaf := d.identity.Chain[0]
	entry := nssIdentity + d.identity.Alias + " " + fingerprint(leaf.Raw)
	if stays {
		return entry, nil
	}
	for _, e := range has {
		if e.nickname == d.identity.Alias || bytes.Equal(e.subject(), leaf.RawSubject) {
			return "", fault.New(fault.Conflict, "the database holds a certificate %q that is not ours and has the nickname or the subject of the new one: NSS keeps one nickname for one subject",
				e.nickname).WithHint("give another nickname; or take it out: certutil -F -d sql:%s -n %q", d.path, e.nickname)
		}
	}
	return entry, d.importKey()
}

func (d *nssDatabase) importKey() error {
	password := []byte(rand.Text())
	sealed, err := keyfile.EncodePKCS12([]keyfile.Entry{*d.identity}, password)
	if err != nil {
		return err
	}
	file, secret := filepath.Join(d.at, "key.p12"), filepath.Join(d.at, "key.password")
	if err := errors.Join(os.WriteFile(file, sealed, 0o600), os.WriteFile(secret, append(password, '\n'), 0o600)); err != nil {
		return err
	}
	words := []string{"pk12util", "-i", file, "-w", secret, "-d", "sql:" + filepath.Join(d.at, "db")}
	if len(d.password) > 0 {
		words = append(words, "-k", d.passwordFile())
	}
	if _, err := d.Run(words...); err != nil {
		return fmt.Errorf("import the key: %w", err)
	}
	return nil
}

// hasKey reports whether the key of a certificate is in the database: certutil marks it as a user's.
func (d *nssDatabase) hasKey(nickname string) bool {
	flags, err := d.flags()
	return err == nil && strings.Contains(flags[nickname], "u")
}

// verify reads what was made: tools that succeed may have done nothing.
func (d *nssDatabase) verify(l *ledger) error {
	has, err := readNSS(filepath.Join(d.at, "db"))
	if err != nil {
		return err
	}
	flags, err := d.flags()
	if err != nil {
		return err
	}
	for _, t := range d.trusted {
		at := slices.IndexFunc(has, func(e nssEntry) bool { return bytes.Equal(e.der, t.certificate.Raw) })
		if at < 0 || !sameFlags(flags[has[at].nickname], t.flags) {
			return fault.New(fault.Internal, "NSS's tools did not add %s with the flags %s, and said that they did", t.certificate.Subject, t.flags)
		}
	}
	wanted := d.wanted()
	for _, e := range has {
		if l.drops(fingerprint(e.der), wanted, d.leaves) {
			return fault.New(fault.Internal, "NSS's tools did not take %s out, and said that they did", e.nickname)
		}
	}
	if w := d.identity; w != nil {
		at := slices.IndexFunc(has, func(e nssEntry) bool { return bytes.Equal(e.der, w.Chain[0].Raw) })
		if at < 0 || has[at].nickname != w.Alias || !strings.Contains(flags[w.Alias], "u") {
			return fault.New(fault.Internal, "NSS's tools did not import the key as %s, and said that they did", w.Alias)
		}
		return d.try(w)
	}
	return nil
}

// try has NSS itself say whether the certificate is good for what it is for, with the CAs that are in the database.
func (d *nssDatabase) try(w *keyfile.Entry) error {
	if !slices.ContainsFunc(d.trusted, func(t nssTrusted) bool { return strings.Contains(t.flags, "C") }) {
		return nil // whom it trusts is in another database, or a library
	}
	for usage, letter := range map[x509.ExtKeyUsage]string{x509.ExtKeyUsageServerAuth: "V", x509.ExtKeyUsageClientAuth: "C"} {
		if !slices.Contains(w.Chain[0].ExtKeyUsage, usage) {
			continue
		}
		if _, err := d.certutil("-V", "-e", "-u", letter, "-n", w.Alias); err != nil {
			return fmt.Errorf("NSS does not take the certificate: %w", err)
		}
	}
	return nil
}

// sameFlags compares what is trusted, whatever the order. The mark of a user's own certificate is no trust.
func sameFlags(a, b string) bool {
	norm := func(flags string) string {
		parts := strings.Split(flags, ",")
		for i, p := range parts {
			letters := []byte(strings.ReplaceAll(p, "u", ""))
			slices.Sort(letters)
			parts[i] = string(slices.Compact(letters))
		}
		return strings.Join(parts, ",")
	}
	return norm(a) == norm(b)
}
