package recipe

import (
	"strings"

	"chancery/internal/fault"
)

// A text may hold variables: ${param.NAME}, ${fact.NAME}, ${host.name}, ${host.names}, ${host.addresses}, ${authority}. What
// stands after | is taken where the variable is not known or empty: ${fact.conf.cert_file|/etc/pki/libvirt/servercert.pem}.
// It may hold variables itself.

// maxText bounds a text and what it becomes.
const maxText = 4096

// piece is a part of a text: literal, or a variable with what is taken where it is empty.
type piece struct {
	literal  string
	variable string
	fallback []piece
	optional bool // there is a fallback, even if it is the empty text
}

// parseText splits a text into its pieces.
func parseText(text string) ([]piece, error) {
	if len(text) > maxText {
		return nil, fault.New(fault.TooLarge, "a text of %d octets: %d at most", len(text), maxText)
	}
	pieces, _, err := parsePieces(text, 0)
	return pieces, err
}

// parsePieces reads up to the end, or below the top up to the } that ends a fallback.
func parsePieces(text string, depth int) (pieces []piece, rest string, err error) {
	rest = text
	for {
		at := strings.Index(rest, "${")
		if end := strings.IndexByte(rest, '}'); depth > 0 && end >= 0 && (at < 0 || end < at) {
			return appendLiteral(pieces, rest[:end]), rest[end:], nil
		}
		if at < 0 {
			if depth > 0 {
				return nil, "", fault.New(fault.Invalid, "%q: ${ without }", text)
			}
			return appendLiteral(pieces, rest), "", nil
		}
		pieces = appendLiteral(pieces, rest[:at])
		rest = rest[at+2:]
		end := strings.IndexAny(rest, "|}")
		if end < 0 || depth >= 4 {
			return nil, "", fault.New(fault.Invalid, "%q: ${ without }, or more than 4 fallbacks in each other", text)
		}
		v := piece{variable: rest[:end]}
		if !isVariable(v.variable) {
			return nil, "", fault.New(fault.Invalid, "%q: there is no variable %q; there are param.NAME, fact.NAME, host.name, host.names, "+
				"host.addresses and authority", text, v.variable)
		}
		if rest[end] == '|' {
			v.optional = true
			if v.fallback, rest, err = parsePieces(rest[end+1:], depth+1); err != nil {
				return nil, "", err
			}
			end = 0
		}
		rest = rest[end+1:]
		pieces = append(pieces, v)
	}
}

func appendLiteral(pieces []piece, text string) []piece {
	if text == "" {
		return pieces
	}
	return append(pieces, piece{literal: text})
}

// eachVariable calls f for every variable of a text, those of fallbacks too.
func eachVariable(pieces []piece, f func(piece)) {
	for _, p := range pieces {
		if p.variable != "" {
			f(p)
			eachVariable(p.fallback, f)
		}
	}
}

// values are what variables stand for. missing says why a variable has no value and a text cannot do without it.
type values struct {
	lookup  func(name string) string
	missing func(name string) error
	escape  func(string) string // of a variable's value; nil leaves it as it is
}

// fill puts the values into a text.
func (v values) fill(text string) (string, error) {
	pieces, err := parseText(text)
	if err != nil {
		return "", err
	}
	filled, err := v.fillPieces(pieces)
	if err == nil && len(filled) > maxText {
		err = fault.New(fault.TooLarge, "%q becomes a text of %d octets: %d at most", text, len(filled), maxText)
	}
	return filled, err
}

func (v values) fillPieces(pieces []piece) (string, error) {
	var b strings.Builder
	for _, p := range pieces {
		if p.variable == "" {
			b.WriteString(p.literal)
			continue
		}
		value := v.lookup(p.variable)
		switch {
		case value != "":
			if err := printableText(p.variable, value); err != nil {
				return "", err
			}
			if v.escape != nil {
				value = v.escape(value)
			}
		case p.optional:
			filled, err := v.fillPieces(p.fallback)
			if err != nil {
				return "", err
			}
			value = filled
		default:
			if err := v.missing(p.variable); err != nil {
				return "", err
			}
		}
		if b.Len()+len(value) > 2*maxText {
			return "", fault.New(fault.TooLarge, "a text becomes longer than %d octets", maxText)
		}
		b.WriteString(value)
	}
	return b.String(), nil
}

// beginsWithVariable reports whether the first octets of a text come from outside the recipe.
func beginsWithVariable(text string) bool { return strings.HasPrefix(text, "${") }

// escapeDN writes a value as RFC 4514 2.4 wants it within a distinguished name.
func escapeDN(value string) string {
	var b strings.Builder
	for i, c := range value {
		special := strings.ContainsRune(`"+,;<>\=`, c) || (c == '#' && i == 0) || (c == ' ' && (i == 0 || i == len(value)-1))
		if special {
			b.WriteByte('\\')
		}
		b.WriteRune(c)
	}
	return b.String()
}

// printableText refuses what could begin another line, or be seen as something else than it is.
func printableText(what, value string) error {
	for _, c := range value {
		if c < 0x20 || c == 0x7f || c == '\u2028' || c == '\u2029' || (c >= 0x80 && c < 0xa0) || c == '\ufffd' {
			return fault.New(fault.Invalid, "%s: %q holds %U; control characters, line ends and broken UTF-8 are refused", what, value, c)
		}
	}
	if len(value) > maxText {
		return fault.New(fault.TooLarge, "%s: %d octets; %d at most", what, len(value), maxText)
	}
	return nil
}
