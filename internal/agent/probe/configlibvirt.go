package probe

import (
	"fmt"
	"strings"
)

// libvirt reads the syntax of libvirtd.conf, virtproxyd.conf and qemu.conf: lines of NAME = VALUE, where a value is a
// number, a text in single, double or triple double quotes without escapes, or a list of such in brackets over any number
// of lines. A list becomes its texts with commas between. Of a name that is set twice the last counts.
func (r *configReader) libvirt(path string, text []byte) error {
	s := &scanner{text: string(text), line: 1}
	for {
		s.blank(true)
		if s.end() {
			return nil
		}
		name := s.word(func(c byte) bool { return c == '_' || isAlphanumeric(c) })
		if name == "" {
			return s.fail(path, "a setting's name was expected")
		}
		s.blank(false)
		if !s.take("=") {
			return s.fail(path, "= was expected after "+name)
		}
		s.blank(false)
		value, err := s.libvirtValue(path)
		if err != nil {
			return err
		}
		s.blank(false)
		if !s.end() && !s.take("\n") {
			return s.fail(path, "something follows the value of "+name)
		}
		r.set(name, value, false)
	}
}

func (s *scanner) libvirtValue(path string) (string, error) {
	if !s.take("[") {
		return s.libvirtText(path)
	}
	var items []string
	for {
		s.blank(true)
		if s.take("]") {
			return strings.Join(items, ","), nil
		}
		item, err := s.libvirtText(path)
		if err != nil {
			return "", err
		}
		items = append(items, item)
		s.blank(true)
		if !s.take(",") && (s.end() || s.text[s.at] != ']') {
			return "", s.fail(path, ", or ] was expected in a list")
		}
	}
}

func (s *scanner) libvirtText(path string) (string, error) {
	for _, quote := range []string{`"""`, `"`, `'`} {
		if !s.take(quote) {
			continue
		}
		n := strings.Index(s.text[s.at:], quote)
		if n < 0 || len(quote) == 1 && strings.Contains(s.text[s.at:s.at+n], "\n") {
			return "", s.fail(path, "a text does not end")
		}
		value := s.text[s.at : s.at+n]
		s.skip(n + len(quote))
		return value, nil
	}
	value := s.word(func(c byte) bool { return c == '-' || c == '+' || c >= '0' && c <= '9' })
	if value == "" {
		return "", s.fail(path, "a number, a text in quotes or a list was expected")
	}
	return value, nil
}

// scanner goes over the text of a configuration file.
type scanner struct {
	text string
	at   int
	line int
}

func (s *scanner) end() bool { return s.at >= len(s.text) }

// skip passes over n octets and counts their lines.
func (s *scanner) skip(n int) {
	s.line += strings.Count(s.text[s.at:s.at+n], "\n")
	s.at += n
}

func (s *scanner) take(text string) bool {
	if !strings.HasPrefix(s.text[s.at:], text) {
		return false
	}
	s.skip(len(text))
	return true
}

// word takes the octets that belong to it.
func (s *scanner) word(belongs func(byte) bool) string {
	n := s.at
	for n < len(s.text) && belongs(s.text[n]) {
		n++
	}
	word := s.text[s.at:n]
	s.skip(len(word))
	return word
}

// blank passes over blanks and comments, and over the ends of lines where lines says so.
func (s *scanner) blank(lines bool) {
	for !s.end() {
		switch c := s.text[s.at]; {
		case c == ' ' || c == '\t' || c == '\r' || c == '\f' || c == '\v', c == '\n' && lines:
			s.skip(1)
		case c == '#':
			s.word(func(c byte) bool { return c != '\n' })
		default:
			return
		}
	}
}

func (s *scanner) fail(path, what string) error {
	return fmt.Errorf("%s line %d: %s", path, s.line, what)
}

func isAlphanumeric(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}
