package settings

import (
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"chancery/internal/fault"
)

// Problem is one rule that the settings break.
type Problem struct {
	Path    string `json:"path"`
	Message string `json:"message"`
}

// Problems is every rule that the settings break. Validate's refusal wraps it, for surfaces that list them.
type Problems []Problem

func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, problem := range p {
		lines[i] = problem.Path + " " + problem.Message
	}
	return strings.Join(lines, "; ")
}

func (p *Problems) add(path, format string, args ...any) {
	*p = append(*p, Problem{path, fmt.Sprintf(format, args...)})
}

// Validate reports every problem with its path, in one refusal.
func (s *Settings) Validate() error {
	var p Problems
	s.identity(&p)
	s.CRL.validate(&p)
	s.OCSP.validate(&p)
	s.Expiry.validate(&p)
	if s.Backup.Drill != 0 {
		p.within("backup.drill", s.Backup.Drill, Duration(time.Hour), 366*day)
	}
	s.Limits.validate(&p)
	s.Retention.validate(&p)
	if len(p) == 0 {
		return nil
	}
	return fault.New(fault.Invalid, "settings: %w", p).At(p[0].Path)
}

func (s *Settings) identity(p *Problems) {
	if s.Authority == "" || len(s.Authority) > 64 || strings.Trim(s.Authority, idCharacters) != "" {
		p.add("authority", "is %q; init makes an identifier of at most 64 letters, digits and hyphens", s.Authority)
	}
	if why := badText(s.Organization, 64); why != "" { // ub-organization-name, RFC 5280 Appendix A.1
		p.add("organization", "%s", why)
	}
	if s.Address != "" {
		if why := badAddress(s.Address); why != "" {
			p.add("address", "is %q, which %s; write https://HOST:PORT", s.Address, why)
		}
	}
	if s.PublicURL != "" {
		if why := badPublicURL(s.PublicURL); why != "" {
			p.add("public_url", "is %q, which %s; write http://NAME or http://NAME/PATH", s.PublicURL, why)
		}
	}
	switch s.Durability {
	case Local, Synchronous, Provider:
	default:
		p.add("durability", "is %q; it is one of local, synchronous, provider", s.Durability)
	}
}

const idCharacters = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-"

func badText(text string, limit int) string {
	switch {
	case !utf8.ValidString(text):
		return "is not UTF-8"
	case utf8.RuneCountInString(text) > limit:
		return fmt.Sprintf("has %d characters; at most %d fit into a certificate", utf8.RuneCountInString(text), limit)
	case strings.ContainsFunc(text, unicode.IsControl):
		return fmt.Sprintf("is %q; control characters are refused", text)
	case text != strings.TrimSpace(text):
		return fmt.Sprintf("is %q; spaces around it are refused", text)
	}
	return ""
}

func badAddress(text string) string {
	u, why := absolute(text, "https")
	switch {
	case why != "":
		return why
	case u.Path != "" && u.Path != "/":
		return "has a path"
	}
	return ""
}

func badPublicURL(text string) string {
	u, why := absolute(text, "http")
	switch {
	case why != "":
		return why
	case strings.HasSuffix(u.Path, "/"):
		return "ends in a slash"
	case strings.Contains(u.Path, "//") || strings.Contains(u.Path, "/."):
		return "has an empty or dotted path element"
	}
	return ""
}

// absolute parses a URL that becomes part of certificates (IA5String) or of configuration, where nothing but scheme,
// host, port and path has a meaning.
func absolute(text, scheme string) (*url.URL, string) {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return nil, "is not a URL"
	case u.Scheme != scheme:
		return nil, "is not " + scheme
	case u.Hostname() == "":
		return nil, "has no host"
	case u.User != nil:
		return nil, "has a user name"
	case u.RawQuery != "" || u.ForceQuery || strings.Contains(text, "#"):
		return nil, "has a query or a fragment"
	case len(text) > 255:
		return nil, "is longer than 255 octets"
	case strings.Trim(text, printableURL) != "":
		return nil, "has a character that a URL in a certificate cannot have"
	case net.ParseIP(u.Hostname()) == nil && badHost(u.Hostname()):
		return nil, "has no valid host name"
	}
	if port := u.Port(); port != "" || strings.HasSuffix(u.Host, ":") {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return nil, "has no valid port"
		}
	}
	return u, ""
}

const printableURL = idCharacters + ".:/_~%[]!$&'()*+,;=@"

func badHost(host string) bool {
	if len(host) > 253 {
		return true
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(host, "."), ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, idCharacters) != "" || label[0] == '-' || label[len(label)-1] == '-' {
			return true
		}
	}
	return false
}

func (p *Problems) within(path string, d, least, most Duration) {
	if d < least || d > most {
		p.add(path, "is %s; it is from %s to %s", d, least, most)
	}
}

func (p *Problems) count(path string, n, least, most int64) {
	if n < least || n > most {
		p.add(path, "is %d; it is from %d to %d", n, least, most)
	}
}

func (c CRL) validate(p *Problems) {
	p.within("crl.validity", c.Validity, Duration(time.Minute), 366*day)
	p.within("crl.refresh", c.Refresh, Duration(10*time.Second), 366*day)
	p.within("crl.delta_validity", c.DeltaValidity, Duration(time.Minute), 366*day)
	p.count("crl.whole_up_to", c.WholeUpTo, 0, 100_000_000)
	p.within("crl.gather", c.Gather, 0, Duration(time.Minute))
	p.within("crl.offline_validity", c.OfflineValidity, day, 3660*day)
	p.within("crl.offline_warning", c.OfflineWarning, 0, 366*day)
	// A CRL that ends before the next one is due leaves relying parties with none; half its life is for failures.
	if c.Refresh > c.Validity/2 {
		p.add("crl.refresh", "is %s; at most half of crl.validity (%s) leaves time to repair a failed refresh", c.Refresh, c.Validity)
	}
	if c.DeltaValidity > c.Validity {
		p.add("crl.delta_validity", "is %s; a delta does not outlive its base, whose crl.validity is %s", c.DeltaValidity, c.Validity)
	}
	if c.OfflineWarning >= c.OfflineValidity {
		p.add("crl.offline_warning", "is %s; it is shorter than crl.offline_validity (%s)", c.OfflineWarning, c.OfflineValidity)
	}
}

func (o OCSP) validate(p *Problems) {
	p.within("ocsp.validity", o.Validity, Duration(time.Minute), 31*day)
	p.within("ocsp.responder_validity", o.ResponderValidity, Duration(time.Hour), 366*day)
	p.count("ocsp.cache_entries", o.CacheEntries, 0, 10_000_000)
	// A response must not be signed by a responder whose certificate ends before the response does.
	if o.ResponderValidity < 2*o.Validity {
		p.add("ocsp.responder_validity", "is %s; it is at least twice ocsp.validity (%s)", o.ResponderValidity, o.Validity)
	}
}

func (e Expiry) validate(p *Problems) {
	if len(e.Thresholds) == 0 || len(e.Thresholds) > 10 {
		p.add("expiry.thresholds", "has %d values; it has from 1 to 10", len(e.Thresholds))
	}
	for i, days := range e.Thresholds {
		switch {
		case days < 0 || days > 3660:
			p.add("expiry.thresholds", "has %d; each is from 0 to 3660 days", days)
		case i > 0 && days >= e.Thresholds[i-1]:
			p.add("expiry.thresholds", "has %d after %d; the largest comes first, and none twice", days, e.Thresholds[i-1])
		}
	}
}

func (l Limits) validate(p *Problems) {
	l.HostRate.validate(p, "limits.host_rate")
	l.OperatorRate.validate(p, "limits.operator_rate")
	l.PublicRate.validate(p, "limits.public_rate")
	l.SignatureRate.validate(p, "limits.signature_rate")
	p.count("limits.duplicates", l.Duplicates, 1, 1_000_000)
	p.count("limits.operator_duplicates", l.OperatorDuplicates, 1, 1_000_000)
	p.within("limits.duplicate_window", l.DuplicateWindow, Duration(time.Second), 31*day)
	p.count("limits.pending_requests", l.PendingRequests, 1, 1_000_000)
	p.count("limits.csr_bytes", l.CSRBytes, 4<<10, 256<<10) // its text form, with names beside it, fits into a call of the API
	p.count("limits.names", l.Names, 1, 10_000)
	p.count("limits.ocsp_bytes", l.OCSPBytes, 256, 32<<10)
}

func (r Rate) validate(p *Problems, path string) {
	// The comparison is written so that NaN fails it too.
	if !(r.PerSecond > 0 && r.PerSecond <= 1_000_000) {
		p.add(path+".per_second", "is %v; it is above 0 and at most 1000000", r.PerSecond)
	}
	p.count(path+".burst", r.Burst, 1, 10_000_000)
}

func (r Retention) validate(p *Problems) {
	p.within("retention.idempotency", r.Idempotency, Duration(time.Hour), 366*day)
	for _, kept := range []struct {
		path  string
		value Duration
	}{
		{"retention.requests", r.Requests}, {"retention.certificates", r.Certificates},
		{"retention.crls", r.CRLs}, {"retention.audit", r.Audit},
	} {
		if kept.value != 0 {
			p.within(kept.path, kept.value, day, 36600*day)
		}
	}
}
