// Package examine looks at certificates where they are used: on a port, in a file, on the hosts of an authority, and on
// whatever lies on a range of ports or in a directory. It says what is wrong by rules that have stable names (see [Rules]),
// with the value that was seen, what to do, and the command that does it.
//
// Standards: RFC 8446, RFC 5246 and RFC 4346 (TLS, of which everything before 1.2 is only looked for), RFC 6066 section 8 and
// RFC 7633 (stapled answers), RFC 5280 sections 4 to 6, RFC 6960 (OCSP), RFC 9525 (names), RFC 8813 (keyUsage of EC keys),
// RFC 7468 (PEM).
//
// Divergences, all deliberate:
//   - A connection verifies nothing: what is wrong is to be seen, and is judged afterwards.
//   - RFC 9525 ignores the common name. A certificate without alternative names is an error of its own rule, since GnuTLS and
//     libvirt still take it.
//   - RFC 5280 section 4.2.1.13 allows any scheme for a CRL's address; only http is fetched, and others are named. Addresses to
//     which a stranger could lead us and could not go himself are not asked: RFC 5280 section 8 warns of that.
//
// What comes from peers and files is a stranger's: connections and fetches have limits of time and size, nothing is looked at
// but what was asked for, and every text of theirs is stripped of control characters before it is put into a finding.
//
// Nothing here has state; every function may be called by several goroutines. The instant is passed in, because it is that of
// the machine from which one looks, which is itself something to be examined.
package examine

import (
	"crypto/x509"
	"fmt"
	"strings"
	"time"
	"unicode"

	"chancery/internal/pki/cert"
	"chancery/internal/upkeep/finding"
)

// report collects the findings about one object.
type report struct {
	where  string // the first part of the rules' names: wire, file, host, local
	object string
	found  []finding.Finding
	// showRoot shows what is sent, where something is sent that should not be.
	showRoot string
}

// tell adds a finding of a rule. Command mends it, as far as that is known.
func (r *report) tell(rule, seen, message, command string) {
	id := r.where + "." + rule
	f := finding.Finding{Level: finding.Error, Check: id, Object: clean(r.object), Seen: clean(seen), Message: clean(message), Hint: clean(command)}
	if known, ok := ruleOf(id); ok {
		f.Level, f.Do = known.Level, known.Do
	}
	r.found = append(r.found, f)
}

// ok adds that something was looked at and found right.
func (r *report) ok(check, format string, args ...any) {
	r.found = append(r.found, finding.Finding{
		Level: finding.OK, Check: r.where + "." + check, Object: clean(r.object), Message: clean(fmt.Sprintf(format, args...)),
	})
}

// has reports whether a finding of the rule was told.
func (r *report) has(rules ...string) bool {
	for _, f := range r.found {
		for _, rule := range rules {
			if f.Level != finding.OK && f.Check == r.where+"."+rule {
				return true
			}
		}
	}
	return false
}

// mostText bounds one text of a stranger's in a finding.
const mostText = 600

// clean strips what could write to a terminal, or pass for another line of ours, and shortens.
func clean(text string) string {
	text = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || r == '\u2028' || r == '\u2029' || r == unicode.ReplacementChar:
			return '?'
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	return shorten(text, mostText)
}

// shorten cuts a text to n characters.
func shorten(text string, n int) string {
	if len(text) <= n { // no more characters than octets
		return text
	}
	runes := []rune(text)
	if len(runes) <= n {
		return text
	}
	return string(runes[:n-1]) + "…"
}

// named says which certificate is meant: its subject, or its number where it has none.
func named(c *x509.Certificate) string {
	if text := subject(c); text != "" {
		return text
	}
	return "serial " + serial(c)
}

// subject is the subject of a certificate, as far as a line has room for it; empty where it has none.
func subject(c *x509.Certificate) string { return shorten(clean(c.Subject.String()), 120) }

// issuerName is the issuer that a certificate names.
func issuerName(c *x509.Certificate) string { return shorten(clean(c.Issuer.String()), 120) }

func serial(c *x509.Certificate) string { return shorten(cert.FormatSerial(c.SerialNumber), 64) }

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }

// span says a length of time as a person does: days where there are some.
func span(d time.Duration) string {
	switch d = d.Abs(); {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", int(d.Hours()/24))
	case d >= 2*time.Hour:
		return fmt.Sprintf("%d hours", int(d.Hours()))
	case d >= 2*time.Minute:
		return fmt.Sprintf("%d minutes", int(d.Minutes()))
	}
	return fmt.Sprintf("%d seconds", int(d.Seconds()))
}

func isWrong(f finding.Finding) bool { return f.Level == finding.Error }

// quoted is a word of a command that is shown to be run. What a stranger wrote stays one word of a shell, and what cannot is
// left out.
func quoted(word string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._:/@%+=,-", r)
	}
	switch {
	case word != "" && !strings.HasPrefix(word, "-") && strings.IndexFunc(word, func(r rune) bool { return !plain(r) }) < 0:
		return word
	case word == "" || strings.HasPrefix(word, "-") || strings.ContainsRune(word, '\'') || clean(word) != word:
		return "…"
	}
	return "'" + word + "'"
}
