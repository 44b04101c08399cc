package place

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// wanted are the fingerprints of the certificates that are to be in the database.
func (d *nssDatabase) wanted() map[string]bool {
	wanted := map[string]bool{}
	for _, t := range d.trusted {
		wanted[fingerprint(t.certificate.Raw)] = true
	}
	return wanted
}

// putTrusted brings the certificates into the database with their flags, and takes out those that are not to be there any
// more. One that was there before us gets the flags; when we go it gets its own back.
func (d *nssDatabase) putTrusted(l *ledger, has []nssEntry) (entries []string, err error) {
	flags, err := d.flags()
	if err != nil {
		return nil, err
	}
	there, wanted := map[string][]byte{}, d.wanted()
	for _, e := range has {
		there[fingerprint(e.der)] = e.der
	}
	if !d.leaves {
		entries = l.departed(there, wanted)
		d.told = l.told
	}
	for _, e := range has {
		print := fingerprint(e.der)
		was, found := l.found[print]
		switch {
		case l.drops(print, wanted, d.leaves):
			err = d.takeOut(e)
		case d.leaves && found && !sameFlags(flags[e.nickname], was):
			_, err = d.certutil("-M", "-n", e.nickname, "-t", was)
		}
		if err != nil {
			return nil, err
		}
	}
	for i, t := range d.trusted {
		entry, err := d.putOne(l, i, t, has, flags)
		if err != nil {
			return nil, err
		}
		entries = append(entries, entry)
	}
	return entries, nil
}

// putOne brings one certificate into the database, and returns its entry in the record.
func (d *nssDatabase) putOne(l *ledger, number int, t nssTrusted, has []nssEntry, flags map[string]string) (string, error) {
	print := fingerprint(t.certificate.Raw)
	at := slices.IndexFunc(has, func(e nssEntry) bool { return bytes.Equal(e.der, t.certificate.Raw) })
	if at < 0 {
		return nssCertificate + print, d.add(number, t)
	}
	name := has[at].nickname
	if _, err := d.certutil("-M", "-n", name, "-t", t.flags); err != nil {
		return "", fmt.Errorf("set the flags of %s: %w", name, err)
	}
	if l.ours[print] {
		return nssCertificate + print, nil
	}
	return l.foundEntry(print, plainFlags(flags[name]), t.certificate), nil
}

func (d *nssDatabase) add(number int, t nssTrusted) error {
	file := filepath.Join(d.at, fmt.Sprintf("%d.der", number))
	if err := os.WriteFile(file, t.certificate.Raw, 0o600); err != nil {
		return err
	}
	if _, err := d.certutil("-A", "-n", fileStem(t.certificate), "-t", t.flags, "-i", file); err != nil {
		return fmt.Errorf("add %s: %w", t.certificate.Subject, err)
	}
	return nil
}

// plainFlags are trust flags as certutil takes them: without the mark of a user's own certificate.
func plainFlags(flags string) string { return cmp.Or(strings.ReplaceAll(flags, "u", ""), ",,") }

// takeOut takes one certificate out. Certutil takes the newest of those that have a subject, whatever nickname it is given:
// others of the same subject are put back as they were.
func (d *nssDatabase) takeOut(e nssEntry) error {
	flags, err := d.flags()
	if err != nil {
		return err
	}
	all, err := readNSS(filepath.Join(d.at, "db"))
	if err != nil {
		return err
	}
	for _, other := range all {
		if !bytes.Equal(other.subject(), e.subject()) {
			continue
		}
		if _, err := d.certutil("-D", "-n", other.nickname); err != nil {
			return fmt.Errorf("take %s out: %w", other.nickname, err)
		}
	}
	for i, other := range all {
		if bytes.Equal(other.der, e.der) || !bytes.Equal(other.subject(), e.subject()) {
			continue
		}
		file := filepath.Join(d.at, fmt.Sprintf("other-%d.der", i))
		if err := os.WriteFile(file, other.der, 0o600); err != nil {
			return err
		}
		if _, err := d.certutil("-A", "-n", other.nickname, "-t", plainFlags(flags[other.nickname]), "-i", file); err != nil {
			return fmt.Errorf("put %s back: %w", other.nickname, err)
		}
	}
	return nil
}

// nssLine is a line of certutil's list: nickname and flags.
var nssLine = regexp.MustCompile(`(?m)^(.*\S)\s+([a-zA-Z]*,[a-zA-Z]*,[a-zA-Z]*)\s*$`)

// flags are the trust flags in the database, by nickname.
func (d *nssDatabase) flags() (map[string]string, error) {
	out, err := d.certutil("-L")
	if err != nil {
		return nil, fmt.Errorf("list the database: %w", err)
	}
	flags := map[string]string{}
	for _, m := range nssLine.FindAllSubmatch(out, -1) {
		flags[string(m[1])] = string(m[2])
	}
	return flags, nil
}
