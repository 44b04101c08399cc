package examine

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"chancery/internal/agent/probe"
	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
	"chancery/internal/upkeep/finding"
)

// FileOptions are how a file is looked at.
type FileOptions struct {
	Key      string   // a file with the key of the first certificate
	Password []byte   // of a key store, or an encrypted key
	User     string   // who must be able to read it: USER, or USER:GROUP
	Names    []string // by which peers look for the first certificate
	Trust    *Trust
	Recipe   string       // the built-in recipe of the consumer
	System   probe.System // as whom another user's reading is tried
}

// mostFile bounds what is read of a file: a long CRL, say.
const mostFile = 64 << 20

// look is a file that is looked at.
type look struct {
	*report
	path    string
	options FileOptions
	now     time.Time
	mode    fs.FileMode
	demand  *Demand // set once there is a certificate; nil without a recipe
}

// File looks at a file with certificates, keys, a key store, a CRL or a request. An error is of the options.
func File(ctx context.Context, path string, o FileOptions, now time.Time) ([]finding.Finding, error) {
	l := &look{report: &report{where: "file", object: path}, path: path, options: o, now: now}
	if o.Recipe != "" {
		if _, err := DemandOf(o.Recipe, nil, nil); err != nil {
			return nil, err
		}
	}
	text, err := l.read(path)
	if err != nil {
		return l.found, err
	}
	if text != nil {
		l.content(ctx, text)
	}
	if o.User != "" {
		if err := l.readable(ctx); err != nil {
			return nil, err
		}
	}
	return l.found, nil
}

// read reads the file; nil where a finding says why not. What is not there is an error.
func (l *look) read(path string) ([]byte, error) {
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrPermission):
		l.tell("unreadable", "permission denied", fmt.Sprintf("%s cannot be looked at", path), "")
		return nil, nil
	case err != nil:
		return nil, err
	case st.IsDir():
		return nil, fault.New(fault.Invalid, "%s is a directory", path).WithHint("chancery doctor scan %s", path)
	case !st.Mode().IsRegular():
		l.tell("format", st.Mode().Type().String(), fmt.Sprintf("%s is no regular file", path), "")
		return nil, nil
	}
	l.mode = st.Mode()
	text, err := readFile(path, mostFile)
	switch {
	case errors.Is(err, fs.ErrPermission):
		l.tell("unreadable", fmt.Sprintf("mode %04o of %s", st.Mode().Perm(), ownerOf(st)), "permission denied", "sudo chancery doctor "+quoted(path))
		return nil, nil
	case errors.Is(err, errTooLarge):
		l.tell("format", err.Error(), fmt.Sprintf("%s is too large to be what it should be", path), "")
		return nil, nil
	}
	return text, err
}

var errTooLarge = errors.New("it has more octets than are looked at")

// readFile reads at most limit octets of a regular file, and waits for nobody.
func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(text)) > limit {
		err = fmt.Errorf("%w: %d", errTooLarge, limit)
	}
	return text, err
}

func ownerOf(st fs.FileInfo) string {
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return "?"
	}
	return fmt.Sprintf("%d:%d", sys.Uid, sys.Gid)
}

// content judges what the file holds.
func (l *look) content(ctx context.Context, text []byte) {
	held, err := Read(text, l.options.Password)
	switch {
	case errors.Is(err, keyfile.ErrPassword):
		l.locked(sentence(err), fmt.Sprintf("chancery doctor %s --password-file F", quoted(l.path)))
	case err != nil:
		l.tell("format", shorten(clean(sentence(err)), 200), fmt.Sprintf("%s cannot be read", l.path), "openssl asn1parse -in "+quoted(l.path))
	}
	if held == nil {
		return
	}
	if err == nil {
		l.ok("kind", "%s", held.Kind)
	}
	if held.Outside > 0 {
		l.tell("text", fmt.Sprintf("line %d", held.Outside), "text stands outside the PEM blocks", onlyBlocks(l.path))
	}
	if held.Trailing > 0 {
		l.tell("trailing", fmt.Sprintf("%d octets", held.Trailing), "something follows the first object in the file",
			fmt.Sprintf("(umask 077; head -c %d %s > NEW)", held.Octets-held.Trailing, quoted(l.path)))
	}
	if held.Secret {
		l.lookAtMode(l.path, l.mode)
	}
	if len(held.Keys) > 1 && !held.Store {
		l.tell("keys", fmt.Sprintf("%d keys", len(held.Keys)), "the file holds several private keys", "")
	}
	if l.options.Recipe != "" {
		l.lookAtLabel()
	}
	switch {
	case held.Store:
		l.store(ctx, held)
	case len(held.Certificates) > 0:
		l.certificates(ctx, held)
	case l.options.Key != "" && len(held.Requests) == 0:
		l.tell("pair", "no certificate", "the file holds no certificate that a key could belong to", "")
	}
	for _, key := range held.Keys {
		if len(held.Certificates) == 0 {
			l.lookAtKey(key.Public())
		}
	}
	l.lists(held)
	l.requests(held)
}

// onlyBlocks writes all PEM blocks of a file anew, keys too, and nothing else.
func onlyBlocks(path string) string {
	return fmt.Sprintf("(umask 077; sed -n '/-----BEGIN /,/-----END /p' %s > NEW)", quoted(path))
}

// locked tells of what a password would open: with none it was not looked at, and with another it is useless to whoever has that.
func (l *look) locked(message, command string) {
	if l.options.Password == nil {
		l.tell("password", "no password was given", message, command)
		return
	}
	l.tell("password.wrong", "another password was given", message, "")
}

func (l *look) lookAtMode(path string, mode fs.FileMode) {
	if mode.Perm()&0o007 != 0 {
		l.tell("mode", fmt.Sprintf("mode %04o", mode.Perm()), fmt.Sprintf("%s holds a private key, and everybody on this machine may read it", path), "chmod o= "+quoted(path))
		return
	}
	l.ok("mode", "%s holds a private key, and has mode %04o", path, mode.Perm())
}

// lookAtLabel holds the file's label against those that the recipe gives its files.
func (l *look) lookAtLabel() {
	d, err := DemandOf(l.options.Recipe, nil, nil)
	if err != nil {
		return
	}
	wanted := slices.DeleteFunc(slices.Clone(d.Labels), func(s string) bool { return s == "" })
	if len(wanted) == 0 {
		return
	}
	has := labelOf(l.path)
	switch {
	case has == "" && !selinuxHere():
		l.ok("label", "none, and SELinux is not in force here")
	case slices.Contains(wanted, has):
		l.ok("label", "%s", has)
	default:
		l.tell("label", "label "+orNone(has), fmt.Sprintf("recipe %s wants %s", l.options.Recipe, wanted[0]), fmt.Sprintf("chcon %s %s", wanted[0], quoted(l.path)))
	}
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// labelOf is the SELinux label of a file, empty where it has none.
func labelOf(path string) string {
	var label [256]byte
	n, err := unix.Lgetxattr(path, "security.selinux", label[:])
	if err != nil {
		return ""
	}
	return strings.TrimRight(string(label[:n]), "\x00")
}

func selinuxHere() bool {
	_, err := os.Stat("/sys/fs/selinux/enforce")
	return err == nil
}

// readable tries whether the consumer's user can read the file.
func (l *look) readable(ctx context.Context) error {
	name, group, _ := strings.Cut(l.options.User, ":")
	absolute, err := filepath.Abs(l.path)
	if err != nil {
		return err
	}
	if _, err := l.options.System.User(name); err != nil {
		return err
	}
	if err := probe.Readable(ctx, l.options.System, absolute, name, group); err != nil {
		l.tell("readable", shorten(sentence(err), 300), fmt.Sprintf("user %s cannot read %s", l.options.User, l.path), "namei -l "+quoted(absolute))
		return nil
	}
	l.ok("readable", "user %s can read it, through all directories above it", l.options.User)
	return nil
}

// certificates judges a file of certificates: a path where the first is no CA's, and otherwise a trust file.
func (l *look) certificates(ctx context.Context, held *Held) {
	all := held.Certificates
	leaf := all[0]
	l.decide(leaf)
	if d := l.demand; d != nil && (d.Most > 0 && len(all) > d.Most || d.MostBytes > 0 && held.Octets > d.MostBytes) {
		l.tell("limits", fmt.Sprintf("%d certificates, %d octets", len(all), held.Octets),
			fmt.Sprintf("%s reads %d certificates and %d octets of one file", d.Recipe, d.Most, d.MostBytes),
			"openssl crl2pkcs7 -nocrl -certfile "+quoted(l.path)+" | openssl pkcs7 -print_certs -noout")
	}
	l.pair(held)
	if leaf.IsCA {
		l.anchors(all)
		for _, name := range l.options.Names { // a server's own that openssl req -x509 made says CA:TRUE
			l.lookAtNames(leaf, name, true, l.demand)
		}
		l.trusted(ctx, keyfile.PathFrom(leaf, all[1:]))
		return
	}
	chain := l.order(all)
	for _, c := range chain {
		l.lookAtTimes(c, l.now, "")
		l.lookAtStrength(c)
	}
	l.leaf(leaf)
	l.trusted(ctx, chain)
}

// trusted judges what the caller trusts, and whether the path reaches it.
func (l *look) trusted(ctx context.Context, chain []*x509.Certificate) {
	if l.options.Trust == nil {
		return
	}
	l.lookAtTrust(l.options.Trust, l.now)
	l.reach(ctx, chain, l.options.Trust, nil, nil, l.now)
}

// decide sets what the consumer demands of the certificate.
func (l *look) decide(c *x509.Certificate) {
	if l.options.Recipe != "" {
		l.demand, _ = DemandOf(l.options.Recipe, nil, c.PublicKey)
	}
}

// leaf judges names and usages.
func (l *look) leaf(c *x509.Certificate) {
	purposes, _, present := purposesOf(c)
	server := !present || slices.ContainsFunc(purposes, serverAuth().Equal)
	for _, name := range l.options.Names {
		l.lookAtNames(c, name, true, l.demand)
	}
	clients := slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth) // it may well be only a client's
	if len(l.options.Names) == 0 && server && !clients && len(c.DNSNames)+len(c.IPAddresses)+len(c.URIs)+len(c.EmailAddresses) == 0 {
		l.lookAtNames(c, orNone(c.Subject.CommonName), false, l.demand)
	}
	l.lookAtUsages(c, l.demand, l.demand == nil && server && present)
}

// anchors judges a trust file: one certificate that is not in force stops consumers.
func (l *look) anchors(all []*x509.Certificate) {
	for i, c := range all {
		if slices.ContainsFunc(all[:i], c.Equal) {
			l.tell("path.duplicate", named(c), fmt.Sprintf("certificate %d of %d is there before", i+1, len(all)), "")
			continue
		}
		l.lookAtTimes(c, l.now, "")
		l.lookAtStrength(c)
		if c.Version == 3 && !c.IsCA {
			l.tell("trust.anchor", "CA:FALSE", fmt.Sprintf("%s stands among CAs and is none", named(c)), "")
		}
	}
}

// pair holds the key of the file, or of the file beside it, against the first certificate.
func (l *look) pair(held *Held) {
	keys := held.Keys
	if l.options.Key != "" {
		beside := l.beside()
		if beside == nil {
			return
		}
		keys = beside.Keys
	}
	if len(keys) == 0 {
		return
	}
	at := slices.IndexFunc(held.Certificates, func(c *x509.Certificate) bool { return keyfile.CheckPair(keys[0].Public(), c) == nil })
	switch {
	case at == 0:
		l.ok("pair", "the key belongs to %s", named(held.Certificates[0]))
	case at > 0:
		l.tell("pair", fmt.Sprintf("it is that of certificate %d", at+1), fmt.Sprintf("the key is not that of the first certificate, %s", named(held.Certificates[0])), "")
	default:
		l.tell("pair", "two public keys", fmt.Sprintf("the key does not belong to %s", named(held.Certificates[0])), "chancery key id "+quoted(l.path))
	}
}

// beside reads the key file that was named.
func (l *look) beside() *Held {
	path := l.options.Key
	st, err := os.Stat(path)
	var text []byte
	if err == nil {
		text, err = readFile(path, keyfile.MaxFile)
	}
	if err != nil {
		l.tell("unreadable", shorten(err.Error(), 200), fmt.Sprintf("the key file %s cannot be read", path), "")
		return nil
	}
	held, err := Read(text, l.options.Password)
	switch {
	case errors.Is(err, keyfile.ErrPassword):
		l.locked(fmt.Sprintf("%s: %s", path, sentence(err)), fmt.Sprintf("chancery doctor %s --key %s --password-file F", quoted(l.path), quoted(path)))
	case err != nil, len(held.Keys) == 0:
		seen := "no private key"
		if err != nil {
			seen = sentence(err)
		}
		l.tell("format", seen, fmt.Sprintf("%s holds no private key that can be read", path), "")
	}
	if held == nil {
		return nil
	}
	if held.Secret {
		l.lookAtMode(path, st.Mode())
	}
	if len(held.Keys) == 0 {
		return nil
	}
	return held
}
