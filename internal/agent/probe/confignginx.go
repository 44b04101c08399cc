package probe

import (
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// nginx reads the syntax of nginx.conf: directives of words that end in ; or open a block, with ' and " for quotes and \
// for escapes. The first value of a directive counts as the fact, wherever its block is: with several servers a recipe's
// parameters say which is meant. A directive's words after the second are left out; on and off are values like others.
// Blocks that hold no directives (map, types, geo, split_clients, match, and what Lua and Perl modules take) are passed
// over, and include is followed with its patterns, relative to the main file.
func (r *configReader) nginx(file string, text []byte) error {
	s := &scanner{text: string(text), line: 1}
	depth := 0
	for {
		words, end, err := s.nginxDirective(file)
		switch {
		case err != nil:
			return err
		case end == 0 && len(words) == 0 && depth == 0:
			return nil
		case end == 0:
			return s.fail(file, "the file ends within a directive or a block")
		case end == '}':
			if depth--; depth < 0 || len(words) > 0 {
				return s.fail(file, "} is not where a block ends")
			}
			continue
		case len(words) == 0:
			return s.fail(file, "a directive's name was expected")
		}
		switch {
		case end == '{' && opaqueBlock(words[0]):
			if !s.block() {
				return s.fail(file, "the block "+words[0]+" does not end")
			}
		case end == '{':
			depth++
		case words[0] == "include" && len(words) == 2:
			if err := r.nginxInclude(words[1]); err != nil {
				return err
			}
		case len(words) >= 2 && !carriesValues(words[0]):
			r.set(words[0], words[1], true)
		}
	}
}

// opaqueBlock reports whether a block holds something else than directives.
func opaqueBlock(name string) bool {
	return slices.Contains([]string{"map", "types", "geo", "split_clients", "match"}, name) || strings.HasSuffix(name, "_by_lua_block")
}

// carriesValues reports whether a directive's values are what is sent, and so may be secret.
func carriesValues(name string) bool {
	return name == "set" || name == "add_header" || name == "add_trailer" || name == "return" || name == "rewrite" || name == "env" || name == "if" ||
		strings.HasSuffix(name, "_set_header") || strings.HasSuffix(name, "_param") || strings.HasPrefix(name, "secure_link") ||
		strings.HasPrefix(name, "perl") || strings.Contains(name, "lua")
}

// nginxInclude follows an include; a pattern may match nothing.
func (r *configReader) nginxInclude(target string) error {
	if !path.IsAbs(target) {
		target = path.Join(path.Dir(r.base), target)
	}
	if !strings.ContainsAny(target, "*?[") {
		return r.file(target, r.nginx)
	}
	root := r.sys.Path("/")
	found, err := filepath.Glob(r.sys.Path(target))
	if err != nil {
		return err
	}
	for _, f := range found {
		if root != "/" {
			f = "/" + strings.TrimPrefix(strings.TrimPrefix(f, strings.TrimSuffix(root, "/")), "/")
		}
		if err := r.file(f, r.nginx); err != nil {
			return err
		}
	}
	return nil
}

// nginxDirective reads words up to ; { or }, and returns which it was; 0 is the end of the file.
func (s *scanner) nginxDirective(file string) (words []string, end byte, err error) {
	for {
		s.blank(true)
		if s.end() {
			return words, 0, nil
		}
		switch c := s.text[s.at]; c {
		case ';', '{', '}':
			s.skip(1)
			return words, c, nil
		}
		word, ok := s.nginxWord()
		if !ok {
			return nil, 0, s.fail(file, "a quoted text does not end")
		}
		if words = append(words, word); len(words) > 1000 {
			return nil, 0, s.fail(file, "a directive has more than 1000 words")
		}
	}
}

// nginxWord reads one word. ${ within it does not open a block.
func (s *scanner) nginxWord() (string, bool) {
	var b strings.Builder
	quote := byte(0)
	if c := s.text[s.at]; c == '"' || c == '\'' {
		quote = c
		s.skip(1)
	}
	for !s.end() {
		c := s.text[s.at]
		switch {
		case quote != 0 && c == quote:
			s.skip(1)
			return b.String(), true
		case c == '\\' && s.at+1 < len(s.text):
			s.skip(1)
			c = s.text[s.at]
		case quote == 0 && c == '$' && strings.HasPrefix(s.text[s.at:], "${"):
			b.WriteByte(c)
			s.skip(1)
			c = '{'
		case quote == 0 && strings.IndexByte(" \t\r\n;{", c) >= 0:
			return b.String(), true
		}
		b.WriteByte(c)
		s.skip(1)
	}
	return b.String(), quote == 0
}

// block passes over a block whose braces, outside quotes and comments, are in balance.
func (s *scanner) block() bool {
	for depth := 1; !s.end(); {
		s.blank(true)
		if s.end() {
			return false
		}
		switch c := s.text[s.at]; c {
		case '{':
			depth++
			s.skip(1)
		case '}':
			s.skip(1)
			if depth--; depth == 0 {
				return true
			}
		default:
			at := s.at
			if _, ok := s.nginxWord(); !ok {
				return false
			}
			if s.at == at { // a word never begins with what ends one, but for ;
				s.skip(1)
			}
		}
	}
	return false
}
