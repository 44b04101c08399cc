package probe

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
)

// postgresql reads the syntax of postgresql.conf: NAME [=] VALUE, where a value is a word or a text in single quotes, in
// which \' and two of them are a quote. Names are compared without regard to case, and the last setting counts. The directives
// include, include_if_exists and include_dir are followed, relative to the file that has them.
func (r *configReader) postgresql(file string, text []byte) error {
	s := &scanner{text: string(text), line: 1}
	for {
		s.blank(true)
		if s.end() {
			return nil
		}
		name := strings.ToLower(s.word(func(c byte) bool { return c == '_' || c == '.' || c == '$' || c >= 0x80 || isAlphanumeric(c) }))
		if name == "" {
			return s.fail(file, "a setting's name was expected")
		}
		s.blank(false)
		if s.take("=") {
			s.blank(false)
		}
		value, ok := s.postgresqlValue()
		if !ok {
			return s.fail(file, "a value was expected after "+name)
		}
		s.blank(false)
		if !s.end() && !s.take("\n") {
			return s.fail(file, "something follows the value of "+name)
		}
		if err := r.postgresqlSetting(file, name, value); err != nil {
			return err
		}
	}
}

func (r *configReader) postgresqlSetting(file, name, value string) error {
	target := value
	if !path.IsAbs(target) {
		target = path.Join(path.Dir(file), target)
	}
	switch name {
	case "include":
		return r.file(target, r.postgresql)
	case "include_if_exists":
		if err := r.file(target, r.postgresql); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	case "include_dir":
		return r.postgresqlDirectory(target)
	}
	r.set(name, value, false)
	return nil
}

// alterSystem reads what ALTER SYSTEM wrote into the data directory, which counts last. Where no data directory is set, it
// is the configuration's own.
func (r *configReader) alterSystem(file string) error {
	dir := r.out["data_directory"]
	if !path.IsAbs(dir) {
		dir = path.Dir(file)
	}
	if err := r.file(path.Join(dir, "postgresql.auto.conf"), r.postgresql); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// postgresqlDirectory reads the files of a directory whose names end in .conf and do not begin with a dot, in the order of
// the C locale.
func (r *configReader) postgresqlDirectory(dir string) error {
	entries, err := os.ReadDir(r.sys.Path(dir))
	if err != nil {
		return err
	}
	var names []string
	for _, e := range entries {
		if n := e.Name(); strings.HasSuffix(n, ".conf") && n[0] != '.' && !e.IsDir() {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	for _, n := range names {
		if err := r.file(path.Join(dir, n), r.postgresql); err != nil {
			return err
		}
	}
	return nil
}

func (s *scanner) postgresqlValue() (string, bool) {
	if !s.take("'") {
		value := s.word(func(c byte) bool { return !strings.ContainsRune(" \t\r\n\f\v#'=", rune(c)) })
		return value, value != ""
	}
	var b strings.Builder
	for !s.end() {
		c := s.text[s.at]
		s.skip(1)
		switch {
		case c == '\n':
			return "", false
		case c == '\'' && !s.take("'"):
			return b.String(), true
		case c == '\\' && !s.end():
			b.WriteByte(s.unescape())
		default:
			b.WriteByte(c)
		}
	}
	return "", false
}

// unescape takes what follows a backslash: a letter, or up to three octal digits.
func (s *scanner) unescape() byte {
	number, digits := 0, 0
	for ; digits < 3 && !s.end() && s.text[s.at] >= '0' && s.text[s.at] <= '7'; digits++ {
		number = number<<3 | int(s.text[s.at]-'0')
		s.skip(1)
	}
	if digits > 0 {
		return byte(number)
	}
	c := s.text[s.at]
	s.skip(1)
	switch c {
	case 'n':
		return '\n'
	case 't':
		return '\t'
	case 'r':
		return '\r'
	case 'b':
		return '\b'
	case 'f':
		return '\f'
	}
	return c
}
