package place

import (
	"crypto/x509"
	"fmt"
	"slices"
	"strings"

	"chancery/internal/pki/keyfile"
)

// The kinds of entries that the record keeps of a shared store, besides those that are ours. A certificate was found there when
// it came to be wanted: "found FINGERPRINT FLAGS NAME", with the flags that it had in a database, and "-" elsewhere. Or it left
// what is wanted: "left FINGERPRINT - NAME".
const (
	entryFound = "found "
	entryLeft  = "left "
)

func foundIn(entries []string) []string { return withPrefix(entries, entryFound) }
func leftIn(entries []string) []string  { return withPrefix(entries, entryLeft) }

func withPrefix(entries []string, prefix string) []string {
	return slices.DeleteFunc(slices.Clone(entries), func(e string) bool { return !strings.HasPrefix(e, prefix) })
}

// ledger is what the record says of the certificates of a shared store. One that we put there is ours: it goes when it is not
// wanted any more, and when we go. One that was found there stays when we go, as it was. But once it was wanted, it is not
// trusted there for its owner's reasons alone: when a root leaves what a pool trusts, because its key was stolen perhaps, then
// a store that we keep must not go on trusting it, whoever put it there first, or puts it back.
type ledger struct {
	prefix string            // of entries that are ours
	ours   map[string]bool   // by fingerprint, as what follows
	found  map[string]string // the flags that it had
	left   map[string]string // its name
	told   []string
}

func newLedger(entries []string, prefix string) *ledger {
	l := &ledger{prefix: prefix, ours: map[string]bool{}, found: map[string]string{}, left: map[string]string{}}
	for _, entry := range entries {
		if rest, is := strings.CutPrefix(entry, entryFound); is {
			print, rest, _ := strings.Cut(rest, " ")
			l.found[print], _, _ = strings.Cut(rest, " ")
		} else if rest, is := strings.CutPrefix(entry, entryLeft); is {
			print, rest, _ := strings.Cut(rest, " ")
			_, l.left[print], _ = strings.Cut(rest, " ")
		} else if print, is := strings.CutPrefix(entry, prefix); is {
			l.ours[print] = true
		}
	}
	return l
}

// change says what brings a store from what it has to what is wanted in it: what is missing, what is to be dropped, and the
// entries of the record then. Leaves says that the store is not kept any more.
func (l *ledger) change(has []keyfile.Trusted, wanted []*x509.Certificate, leaves bool) (
	missing []*x509.Certificate, drop func(keyfile.Trusted) bool, entries []string,
) {
	there, isWanted := map[string][]byte{}, map[string]bool{}
	for _, c := range has {
		there[fingerprint(c.DER)] = c.DER
	}
	for _, c := range wanted {
		print := fingerprint(c.Raw)
		isWanted[print] = true
		switch {
		case there[print] == nil:
			missing = append(missing, c)
			entries = append(entries, l.prefix+print)
		case l.ours[print]:
			entries = append(entries, l.prefix+print)
		default:
			entries = append(entries, l.foundEntry(print, "-", c))
		}
	}
	if !leaves {
		entries = append(entries, l.departed(there, isWanted)...)
	}
	slices.Sort(entries)
	return missing, func(c keyfile.Trusted) bool { return l.drops(fingerprint(c.DER), isWanted, leaves) }, slices.Compact(entries)
}

// foundEntry is the entry of a certificate that was there and is wanted, with the flags of when it was found.
func (l *ledger) foundEntry(print, flags string, c *x509.Certificate) string {
	if was, known := l.found[print]; known {
		flags = was
	}
	return entryFound + print + " " + flags + " " + c.Subject.String()
}

// drops reports whether a certificate that is there goes.
func (l *ledger) drops(print string, isWanted map[string]bool, leaves bool) bool {
	if isWanted[print] {
		return false
	}
	_, found := l.found[print]
	_, left := l.left[print]
	return l.ours[print] || left || found && !leaves
}

// departed are the entries of those that have left, and tells of those that go now although others had put them there. Of
// certificates that are no CA's, which are trusted one by one and renewed often, none is remembered.
func (l *ledger) departed(there map[string][]byte, isWanted map[string]bool) (entries []string) {
	gone := map[string]string{}
	for _, print := range slices.Concat(keys(l.ours), keys(l.found), keys(l.left)) {
		if isWanted[print] {
			continue
		}
		name, isCA := l.left[print], true
		if c, err := x509.ParseCertificate(there[print]); err == nil {
			name, isCA = c.Subject.String(), c.IsCA || c.Version < 3
		}
		if isCA {
			gone[print] = name
		}
		_, found := l.found[print]
		_, left := l.left[print]
		words := fmt.Sprintf("certificate %s (SHA-256 %s) ", name, print)
		switch {
		case there[print] == nil:
		case left:
			l.told = append(l.told, words+"had left with the pool's trust, was put back, and was taken out again")
		case found && !l.ours[print]:
			l.told = append(l.told, words+"was there before, and left with the pool's trust")
		}
	}
	for print, name := range gone {
		entries = append(entries, entryLeft+print+" - "+name)
	}
	slices.Sort(l.told)
	l.told = slices.Compact(l.told)
	return entries
}

func keys[V any](m map[string]V) []string {
	var all []string
	for k := range m {
		all = append(all, k)
	}
	return all
}
