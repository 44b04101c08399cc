package certtool

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"chancery/internal/fault"
)

// position is a place in the template: line and column count from 1, columns in characters.
type position struct{ line, column int }

func (p position) String() string { return fmt.Sprintf("%d:%d", p.line, p.column) }

// setting is one line of the template: a name and what stands behind it.
type setting struct {
	name    string
	value   string
	at      position // of the name
	valueAt position
}

type scanner struct {
	text      string
	mode      Mode
	pos       int
	line      int
	lineStart int
}

func (s *scanner) here() position {
	return position{s.line, 1 + utf8.RuneCountInString(s.text[s.lineStart:s.pos])}
}

func (s *scanner) done() bool { return s.pos >= len(s.text) }

func (s *scanner) next() byte {
	c := s.text[s.pos]
	s.pos++
	if c == '\n' {
		s.line++
		s.lineStart = s.pos
	}
	return c
}

// refuseAt returns a refusal in the strict mode and nil in the other, where certtool goes on.
func (s *scanner) refuseAt(at position, format string, args ...any) error {
	if s.mode == Compat {
		return nil
	}
	return refuseAt(at, format, args...)
}

func refuseAt(at position, format string, args ...any) *fault.Error {
	return fault.New(fault.Invalid, "template line %d, column %d: %w", at.line, at.column, fmt.Errorf(format, args...)).
		At(at.String())
}

func isBlank(c byte) bool { return c == ' ' || c == '\t' }

func isSpace(c byte) bool { return strings.IndexByte(" \t\n\v\f\r", c) >= 0 }

func isNameStart(c byte) bool { return c == '_' || 'a' <= c|0x20 && c|0x20 <= 'z' }

func isNamePart(c byte) bool {
	return isNameStart(c) || '0' <= c && c <= '9' || c == '^' || c == ':' || c == '-'
}

// scan splits the template into settings as certtool does.
func scan(text string, mode Mode) ([]setting, error) {
	s := &scanner{text: text, mode: mode, line: 1}
	var settings []setting
	for {
		s.skipToName()
		if s.done() {
			return settings, nil
		}
		if c := s.text[s.pos]; !isNameStart(c) {
			r, _ := utf8.DecodeRuneInString(s.text[s.pos:])
			return settings, s.refuseAt(s.here(), "certtool stops reading at the unexpected character %q and drops all that "+
				"follows; an option begins with a letter, a comment with #", r)
		}
		e, err := s.setting()
		if err != nil {
			return nil, err
		}
		settings = append(settings, e)
	}
}

func (s *scanner) skipToName() {
	for !s.done() {
		switch c := s.text[s.pos]; {
		case isSpace(c):
			s.next()
		case c == '#':
			for !s.done() && s.next() != '\n' {
			}
		default:
			return
		}
	}
}

func (s *scanner) setting() (setting, error) {
	e := setting{at: s.here()}
	start := s.pos
	for !s.done() && isNamePart(s.text[s.pos]) {
		s.next()
	}
	if s.text[s.pos-1] == ':' && s.pos-start > 1 {
		s.pos-- // the separator; elsewhere in a name a colon is a character like others
	}
	e.name = s.text[start:s.pos]
	if !s.done() && !isSpace(s.text[s.pos]) && s.text[s.pos] != '=' && s.text[s.pos] != ':' {
		if err := s.refuseAt(s.here(), "the name %s must be followed by a blank or by =", e.name); err != nil {
			return e, err
		}
	}
	s.skipBlanks()
	if !s.done() && (s.text[s.pos] == '=' || s.text[s.pos] == ':') {
		s.next()
		s.skipBlanks()
	}
	e.valueAt = s.here()
	if s.done() {
		return e, nil
	}
	if c := s.text[s.pos]; c == '"' || c == '\'' {
		return e, s.quoted(&e)
	}
	return e, s.unquoted(&e)
}

func (s *scanner) skipBlanks() {
	for !s.done() && isBlank(s.text[s.pos]) {
		s.next()
	}
}

// quoted reads a value in quotes. certtool lets it run over line ends and, without a closing quote, to the end of file.
func (s *scanner) quoted(e *setting) error {
	quote := s.next()
	var b strings.Builder
	for {
		if s.done() || s.mode == Strict && s.text[s.pos] == '\n' {
			e.value = b.String()
			return s.refuseAt(e.valueAt, "the value of %s has no closing %c on its line; certtool would swallow the lines "+
				"that follow",
				e.name, quote)
		}
		at := s.here()
		c := s.next()
		switch {
		case c == quote:
			e.value = b.String()
			return s.afterQuote(e)
		case c != '\\':
			b.WriteByte(c)
		case s.done():
			return refuseAt(at, "the template ends in a backslash within quotes, and certtool cannot load it")
		case s.text[s.pos] == quote:
			b.WriteByte(s.next())
		case s.text[s.pos] == '\n':
			s.next()
			b.WriteByte(' ')
		default:
			s.skipRune()
			if err := s.refuseAt(at, "certtool drops a backslash together with the character behind it; in quotes only \\%c "+
				"and a backslash at the line end have a meaning", quote); err != nil {
				return err
			}
		}
	}
}

// skipRune drops the escaped octet; certtool knows no characters, so only the octet goes.
func (s *scanner) skipRune() { s.next() }

func (s *scanner) afterQuote(e *setting) error {
	if s.mode == Compat {
		return nil
	}
	rest := s.text[s.pos:]
	if end := strings.IndexByte(rest, '\n'); end >= 0 {
		rest = rest[:end]
	}
	if rest = strings.TrimLeft(rest, " \t\r"); rest != "" && rest[0] != '#' {
		s.skipBlanks()
		return refuseAt(s.here(), "text follows the closing quote of %s, which certtool reads as a new option; put it on "+
			"a line of its own", e.name)
	}
	return nil
}

// unquoted reads the rest of the line as it is. certtool takes its first character literally, even a backslash.
func (s *scanner) unquoted(e *setting) error {
	var b strings.Builder
	for !s.done() && s.text[s.pos] != '\n' {
		at := s.here()
		c := s.next()
		if c != '\\' {
			b.WriteByte(c)
			continue
		}
		if err := s.refuseAt(at, "certtool drops a backslash and the character behind it, but for a backslash that begins "+
			"a value; write the value without backslashes"); err != nil {
			return err
		}
		switch {
		case at == e.valueAt:
			b.WriteByte(c)
		case s.done():
		case s.text[s.pos] == '\n':
			b.WriteByte(s.next())
		default:
			s.skipRune()
		}
	}
	e.value = b.String()
	return s.checkUnquoted(e)
}

func (s *scanner) checkUnquoted(e *setting) error {
	if s.mode == Compat || e.value == "" {
		return nil
	}
	end := position{e.valueAt.line, e.valueAt.column + utf8.RuneCountInString(e.value) - 1}
	switch last := e.value[len(e.value)-1]; {
	case last == '\r':
		return refuseAt(end, "the line ends in CR LF, and certtool takes the CR into the value of %s; end lines in LF", e.name)
	case isBlank(last):
		return refuseAt(end, "the value of %s ends in a blank, which certtool keeps; remove it, or put the value in "+
			"quotes", e.name)
	}
	for i := range len(e.value) {
		if e.value[i] == '#' && (i == 0 || isBlank(e.value[i-1])) {
			at := position{e.valueAt.line, e.valueAt.column + utf8.RuneCountInString(e.value[:i])}
			return refuseAt(at, "a comment is read only at the beginning of a line, so certtool takes %q into the value of "+
				"%s; move it to a line of its own, or put the value in quotes if the # belongs to it", e.value[i:], e.name)
		}
		if e.value[i] < ' ' {
			at := position{e.valueAt.line, e.valueAt.column + utf8.RuneCountInString(e.value[:i])}
			return refuseAt(at, "the value of %s contains the control character %q; put the value in quotes if it is meant",
				e.name, e.value[i])
		}
	}
	return nil
}
