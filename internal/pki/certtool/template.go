package certtool

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"chancery/internal/fault"
)

// Mode says what becomes of the silent traps of the language.
type Mode int

const (
	Strict Mode = iota // each trap is a refusal
	Compat             // certtool's own reading, with its warnings
)

// maxSize bounds a template, far above what certtool's tables could hold usefully.
const maxSize = 1 << 20

// Warning is something that the template says and the certificate does not. Message is certtool's, without "Warning: ",
// where certtool warns too.
type Warning struct {
	Line, Column int // 0 where no single place is to blame
	Message      string
}

func (w Warning) String() string { return w.Message }

// Template is a parsed template. Its values are unread text until Certificate or CRL is called.
type Template struct {
	mode     Mode
	settings map[string][]setting
}

// Parse reads a template. Its refusals carry "line:column" as fault.Error.Pointer. In the Compat mode the warnings are
// those that certtool prints; in the Strict mode there are none, since what deserves one is refused.
func Parse(text []byte, mode Mode) (*Template, []Warning, error) {
	if len(text) > maxSize {
		return nil, nil, fault.New(fault.TooLarge, "the template has %d octets; at most %d are read", len(text), maxSize)
	}
	if i := strings.IndexByte(string(text), 0); i >= 0 {
		return nil, nil, refuseAt(positionOf(string(text), i), "a NUL stands in the template, where certtool cuts the "+
			"value off; remove it")
	}
	settings, err := scan(string(text), mode)
	if err != nil {
		return nil, nil, err
	}
	t := &Template{mode: mode, settings: make(map[string][]setting)}
	var warnings []Warning
	seen := map[string]bool{}
	for _, e := range settings {
		kind, known := kindOf(e.name)
		if !utf8.ValidString(e.value) && (mode == Strict || known && kind != flag) {
			return nil, nil, refuseAt(e.valueAt, "the value of %s is not UTF-8", e.name)
		}
		if mode == Compat {
			warnings = append(warnings, warningsAbout(e, seen)...)
		} else if !known {
			return nil, nil, refuseUnknown(e)
		}
		if known {
			if err := t.add(e, kind); err != nil {
				return nil, nil, err
			}
		}
	}
	if err := t.checkLoaded(); err != nil {
		return nil, nil, err
	}
	if mode == Strict {
		if err := t.checkDropped(); err != nil {
			return nil, nil, err
		}
	}
	return t, warnings, nil
}

func positionOf(text string, offset int) position {
	before := text[:offset]
	start := strings.LastIndexByte(before, '\n') + 1
	return position{1 + strings.Count(before, "\n"), 1 + utf8.RuneCountInString(before[start:])}
}

// warningsAbout are certtool's warnings. It compares names without regard to case here, though not when it looks values
// up, and says nothing of policies.
func warningsAbout(e setting, seen map[string]bool) []Warning {
	name := strings.ToLower(e.name)
	kind, known := kindOf(name)
	repeated := seen[name]
	seen[name] = true
	switch {
	case strings.HasPrefix(name, "policy"):
	case !known:
		return []Warning{{e.at.line, e.at.column, fmt.Sprintf("skipping unknown option '%s'", e.name)}}
	case kind != multi && repeated:
		return []Warning{{e.at.line, e.at.column, fmt.Sprintf("multiple options found for '%s'; only the first will be "+
			"taken into account.", name)}}
	}
	return nil
}

func refuseUnknown(e setting) error {
	if lower := strings.ToLower(e.name); lower != e.name {
		if _, known := kindOf(lower); known {
			return refuseAt(e.at, "certtool silently ignores %s, because option names are in lower case; write %s", e.name, lower)
		}
	}
	if name, rest, found := strings.Cut(e.name, ":"); found && rest != "" {
		if _, known := kindOf(name); known {
			return refuseAt(e.at, "certtool reads %s as one unknown name; write %s = %s", e.name, name, rest)
		}
	}
	if near := nearest(e.name); near != "" {
		return refuseAt(e.at, "there is no option %s; did you mean %s?", e.name, near)
	}
	return refuseAt(e.at, "there is no option %s", e.name)
}

func (t *Template) add(e setting, kind optionKind) error {
	before := t.settings[e.name]
	if t.mode == Compat {
		if len(before) == 0 || kind == multi && len(before) < maxValues { // the 129th value goes without a warning
			t.settings[e.name] = append(before, e)
		}
		return nil
	}
	switch {
	case kind != multi && len(before) > 0:
		return refuseAt(e.at, "%s may stand once, and certtool takes the one of line %d; remove one of them", e.name,
			before[0].at.line)
	case len(before) >= maxValues:
		return refuseAt(e.at, "%s may stand %d times, and certtool drops the rest", e.name, maxValues)
	case kind == flag && e.value != "" && e.value != "true" && e.value != "yes" && e.value != "1":
		return refuseAt(e.valueAt, "%s is on because it is present, whatever its value %q; remove the line to switch it "+
			"off, or write %s alone to switch it on", e.name, e.value, e.name)
	case kind != flag && e.value == "":
		return refuseAt(e.valueAt, "%s needs a value", e.name)
	case kind == number || e.name == "tls_feature":
		if n, err := strconv.ParseInt(e.value, 10, 32); err != nil || strconv.FormatInt(n, 10) != e.value {
			return refuseAt(e.valueAt, "%s needs a decimal number, not %q, which certtool would read as %d", e.name, e.value,
				strtol(e.value))
		}
	}
	t.settings[e.name] = append(before, e)
	return nil
}

// checkLoaded refuses what certtool refuses in any template, whether the command at hand has a use for it or not.
func (t *Template) checkLoaded() error {
	for _, name := range []string{"serial", "crl_number"} {
		if _, err := t.octets(name); err != nil {
			return err
		}
	}
	for _, name := range []string{"dn_oid", "other_name", "other_name_octet", "other_name_utf8", "add_extension",
		"add_critical_extension"} {
		for _, e := range t.settings[name] {
			if _, rest := splitPair(e.value); rest == "" {
				return refuse(e, "%q is not an object identifier, a blank, and a value", e.value)
			}
		}
	}
	return nil
}

// checkDropped refuses the options that certtool reads and then drops.
func (t *Template) checkDropped() error {
	needs := func(option, other string) error {
		if e, ok := t.first(option); ok && !t.has(other) {
			return refuseAt(e.at, "certtool drops %s without %s; add %s or remove this line", option, other, other)
		}
		return nil
	}
	excludes := func(option, other string) error {
		if e, ok := t.first(option); ok && t.has(other) {
			return refuseAt(e.at, "certtool drops %s beside %s; remove one of them", option, other)
		}
		return nil
	}
	checks := []error{excludes("o", "organization"), excludes("ou", "unit"), excludes("email", "tls_www_server"),
		excludes("expiration_days", "expiration_date"), excludes("crl_next_update", "crl_next_update_date"),
		needs("cert_signing_key", "ca"), needs("crl_signing_key", "ca")}
	for _, name := range []string{"permit_dns", "permit_ip", "permit_email", "exclude_dns", "exclude_ip", "exclude_email"} {
		checks = append(checks, needs("nc_"+name, "ca"))
	}
	if !t.has("proxy_policy_language") {
		checks = append(checks, needs("path_len", "ca"))
	}
	if t.has("ca") && !t.has("tls_www_server") {
		checks = append(checks, excludes("encryption_key", "ca"), excludes("ipsec_ike_key", "ca"))
	}
	for n := 1; n <= maxPolicies; n++ {
		name := "policy" + strconv.Itoa(n)
		checks = append(checks, needs(name+"_txt", name), needs(name+"_url", name))
		if n > 1 {
			checks = append(checks, needs(name, "policy"+strconv.Itoa(n-1)))
		}
	}
	for _, err := range checks {
		if err != nil {
			return err
		}
	}
	return t.checkNumbers()
}

func (t *Template) checkNumbers() error {
	for _, name := range []string{"expiration_days", "crl_next_update"} {
		if e, ok := t.first(name); ok {
			if n := strtol(e.value); n == 0 || n < -1 {
				return refuseAt(e.valueAt, "%s = %s does not mean what it says to certtool; write days from 1, or -1 for no end",
					name, e.value)
			}
		}
	}
	for _, name := range []string{"path_len", "inhibit_anypolicy_skip_certs"} {
		if e, ok := t.first(name); ok && strtol(e.value) < 0 {
			return refuseAt(e.valueAt, "%s = %s is dropped by certtool; write a number from 0, or remove the line", name, e.value)
		}
	}
	return nil
}

// Mode is the mode that the template was parsed in.
func (t *Template) Mode() Mode { return t.mode }

// Has reports whether the option stands in the template.
func (t *Template) Has(option string) bool { return t.has(option) }

// Text is the value of an option that may stand once, such as password, challenge_password or pkcs12_key_name.
func (t *Template) Text(option string) string {
	e, _ := t.first(option)
	return e.value
}

func (t *Template) has(name string) bool { return len(t.settings[name]) > 0 }

func (t *Template) first(name string) (setting, bool) {
	if values := t.settings[name]; len(values) > 0 {
		return values[0], true
	}
	return setting{}, false
}

// aliased returns the values of name or, where there are none, of its other name.
func (t *Template) aliased(name, alias string) []setting {
	if t.has(name) {
		return t.settings[name]
	}
	return t.settings[alias]
}

// number is the value as a C int: strtol, then cut to 32 bits.
func (t *Template) number(name string) (int, bool) {
	e, ok := t.first(name)
	return int(int32(strtol(e.value))), ok
}

// strtol reads a number as C's strtol does in base 10: leading blanks, a sign, and as many digits as there are.
func strtol(text string) int64 {
	text = strings.TrimLeft(text, " \t\n\v\f\r")
	end := 0
	if end < len(text) && (text[end] == '+' || text[end] == '-') {
		end++
	}
	for end < len(text) && '0' <= text[end] && text[end] <= '9' {
		end++
	}
	n, _ := strconv.ParseInt(text[:end], 10, 64) // out of range, it is the nearest, as in C
	return n
}
