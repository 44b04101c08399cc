package recipe

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"chancery/internal/fault"
)

// The language of conditions:
//
//	condition = and { "or" and }
//	and       = not { "and" not }
//	not       = "not" not | "(" condition ")" | operand [ operator operand ]
//	operator  = "==" | "!=" | "<" | "<=" | ">" | ">="
//	operand   = variable | word | "text"
//
// A variable is param.NAME, fact.NAME, host.name or authority. One that is not known is the empty text. == and != compare
// texts, but versions by their numbers (9.0 == 9.0.0); the others compare versions only. A comparison of versions one of
// which is not known is neither true nor false, and so is its "not"; a condition that is neither does not hold. A variable
// without an operator is a parameter of type bool.

// limits of a condition
const (
	maxCondition = 1000 // octets
	maxNesting   = 16
)

// verdict is what a condition comes to.
type verdict int

const (
	unknown verdict = iota
	holdsNot
	holds
)

func decide(b bool) verdict {
	if b {
		return holds
	}
	return holdsNot
}

// condition is a node of a condition's tree: "or" and "and" with terms, "not" with one, or a comparison.
type condition struct {
	operator    string
	terms       []*condition
	left, right operand
	bare        bool // left stood alone: it is compared with true
}

// operand is a variable or a literal text.
type operand struct {
	variable string
	text     string
	quoted   bool
}

// parseCondition reads a condition. The empty text is nil, which always holds.
func parseCondition(text string) (*condition, error) {
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	if len(text) > maxCondition {
		return nil, fault.New(fault.TooLarge, "a condition of %d octets: %d at most", len(text), maxCondition)
	}
	tokens, err := conditionTokens(text)
	if err != nil {
		return nil, err
	}
	p := &conditionParser{text: text, tokens: tokens}
	c, err := p.or(0)
	if err == nil && p.peek() != "" {
		err = p.unexpected("and, or, or the end")
	}
	return c, err
}

// conditionTokens splits a condition; a quoted text keeps its first quote.
func conditionTokens(text string) ([]string, error) {
	var tokens []string
	for rest := text; ; {
		rest = strings.TrimLeft(rest, " \t\n")
		if rest == "" {
			return tokens, nil
		}
		length := 1
		switch c := rest[0]; {
		case c == '"':
			end := strings.IndexByte(rest[1:], '"')
			if end < 0 {
				return nil, fault.New(fault.Invalid, "condition %q: a text has no closing quote", text)
			}
			tokens, rest = append(tokens, rest[:end+1]), rest[end+2:]
			continue
		case c == '(' || c == ')':
		case strings.IndexByte("=!<>", c) >= 0:
			for length < len(rest) && rest[length] == '=' && length < 2 {
				length++
			}
		case isWord(c):
			for length < len(rest) && isWord(rest[length]) {
				length++
			}
		default:
			return nil, fault.New(fault.Invalid, "condition %q: %q belongs to no condition; quote texts that are not letters, digits and ._/:-",
				text, rest[:1])
		}
		tokens, rest = append(tokens, rest[:length]), rest[length:]
	}
}

func isWord(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("._/:-", c) >= 0
}

type conditionParser struct {
	text   string
	tokens []string
	next   int
}

func (p *conditionParser) peek() string {
	if p.next < len(p.tokens) {
		return p.tokens[p.next]
	}
	return ""
}

func (p *conditionParser) take() string {
	token := p.peek()
	p.next++
	return token
}

func (p *conditionParser) unexpected(wanted string) error {
	found := "its end"
	if token := p.peek(); token != "" {
		found = strconv.Quote(token)
	}
	return fault.New(fault.Invalid, "condition %q: %s is wanted at %s", p.text, wanted, found)
}

func (p *conditionParser) or(depth int) (*condition, error) {
	return p.list("or", depth, func() (*condition, error) {
		return p.list("and", depth, func() (*condition, error) { return p.not(depth) })
	})
}

func (p *conditionParser) list(word string, depth int, part func() (*condition, error)) (*condition, error) {
	if depth > maxNesting {
		return nil, fault.New(fault.Invalid, "condition %q: nested more than %d deep", p.text, maxNesting)
	}
	first, err := part()
	if err != nil || p.peek() != word {
		return first, err
	}
	c := &condition{operator: word, terms: []*condition{first}}
	for p.peek() == word {
		p.take()
		term, err := part()
		if err != nil {
			return nil, err
		}
		c.terms = append(c.terms, term)
	}
	return c, nil
}

func (p *conditionParser) not(depth int) (*condition, error) {
	switch p.peek() {
	case "not":
		p.take()
		if depth >= maxNesting {
			return nil, fault.New(fault.Invalid, "condition %q: nested more than %d deep", p.text, maxNesting)
		}
		term, err := p.not(depth + 1)
		return &condition{operator: "not", terms: []*condition{term}}, err
	case "(":
		p.take()
		c, err := p.or(depth + 1)
		if err == nil && p.peek() != ")" {
			err = p.unexpected(")")
		}
		p.take()
		return c, err
	}
	return p.comparison()
}

func (p *conditionParser) comparison() (*condition, error) {
	left, err := p.operand()
	if err != nil {
		return nil, err
	}
	switch p.peek() {
	case "==", "!=", "<", "<=", ">", ">=":
		c := &condition{operator: p.take(), left: left}
		c.right, err = p.operand()
		return c, err
	case "", "and", "or", ")":
		if left.variable == "" {
			return nil, fault.New(fault.Invalid, "condition %q: %q alone says nothing; compare it with something", p.text, left.text)
		}
		return &condition{operator: "==", left: left, right: operand{text: "true"}, bare: true}, nil
	}
	return nil, p.unexpected("==, !=, <, <=, > or >=")
}

func (p *conditionParser) operand() (operand, error) {
	token := p.peek()
	if token == "" || strings.ContainsAny(token[:1], "()=!<>") || slices.Contains([]string{"and", "or", "not"}, token) {
		return operand{}, p.unexpected("a variable such as fact.version, or a value")
	}
	p.take()
	switch {
	case token[0] == '"':
		return operand{text: token[1:], quoted: true}, nil
	case isVariable(token):
		return operand{variable: token}, nil
	}
	return operand{text: token}, nil
}

// isVariable reports whether a word is meant as a variable: whether there is one is asked elsewhere.
func isVariable(word string) bool {
	return strings.HasPrefix(word, "param.") || strings.HasPrefix(word, "fact.") || strings.HasPrefix(word, "host.") || word == "authority"
}

// comparisons calls f for every comparison of the tree.
func (c *condition) comparisons(f func(*condition)) {
	switch {
	case c == nil:
	case c.terms == nil:
		f(c)
	default:
		for _, term := range c.terms {
			term.comparisons(f)
		}
	}
}

// judge decides the condition by the values of its variables.
func (c *condition) judge(value func(string) string) verdict {
	if c == nil {
		return holds
	}
	switch c.operator {
	case "not":
		switch c.terms[0].judge(value) {
		case holds:
			return holdsNot
		case holdsNot:
			return holds
		}
		return unknown
	case "and", "or":
		end, result := holdsNot, holds
		if c.operator == "or" {
			end, result = holds, holdsNot
		}
		for _, term := range c.terms {
			switch v := term.judge(value); v {
			case end:
				return end
			case unknown:
				result = unknown
			}
		}
		return result
	}
	return c.compare(value)
}

func (c *condition) compare(value func(string) string) verdict {
	left, right := c.left.value(value), c.right.value(value)
	equality := c.operator == "==" || c.operator == "!="
	if equality && (c.left.quoted || c.right.quoted || !wholeVersion().MatchString(left) || !wholeVersion().MatchString(right)) {
		return decide((left == right) == (c.operator == "=="))
	}
	a, b := parseVersion(left), parseVersion(right)
	if a == nil || b == nil {
		return unknown
	}
	order := compareVersions(a, b)
	switch c.operator {
	case "==":
		return decide(order == 0)
	case "!=":
		return decide(order != 0)
	case "<":
		return decide(order < 0)
	case "<=":
		return decide(order <= 0)
	case ">":
		return decide(order > 0)
	}
	return decide(order >= 0)
}

func (o operand) value(value func(string) string) string {
	if o.variable != "" {
		return value(o.variable)
	}
	return o.text
}

// These are compiled when they are first asked for: bounded repetitions make long programs of them, and every start of an agent,
// and of any other command, would wait for that.
var (
	wholeVersion   = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[0-9]{1,9}(\.[0-9]{1,9}){0,7}$`) })
	leadingVersion = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[0-9]{1,9}(\.[0-9]{1,9}){0,7}`) })
)

// parseVersion reads the numbers that a version begins with: 11.6.0-1.fc43 is 11.6.0. It is nil where there is none.
func parseVersion(text string) []int {
	found := leadingVersion().FindString(text)
	if found == "" {
		return nil
	}
	var numbers []int
	for part := range strings.SplitSeq(found, ".") {
		n, err := strconv.Atoi(part)
		if err != nil {
			return nil
		}
		numbers = append(numbers, n)
	}
	return numbers
}

// compareVersions compares number by number; what is missing is 0.
func compareVersions(a, b []int) int {
	for len(a) < len(b) {
		a = append(a, 0)
	}
	for len(b) < len(a) {
		b = append(b, 0)
	}
	return slices.Compare(a, b)
}

// words says the condition in English; name says a variable.
func (c *condition) words(name func(string) string) string {
	if c == nil {
		return "always"
	}
	switch c.operator {
	case "not":
		term := *c.terms[0]
		if opposite := map[string]string{"==": "!=", "!=": "=="}[term.operator]; opposite != "" {
			term.operator = opposite
			return term.words(name)
		}
		return "not (" + term.words(name) + ")"
	case "and", "or":
		var parts []string
		for _, term := range c.terms {
			part := term.words(name)
			if c.operator == "and" && term.operator == "or" || c.operator == "or" && term.operator == "and" {
				part = "(" + part + ")"
			}
			parts = append(parts, part)
		}
		return strings.Join(parts, " "+c.operator+" ")
	}
	left, right := c.left.words(name), c.right.words(name)
	if c.right.variable == "" && c.right.text == "" {
		return map[string]string{"==": left + " is not set", "!=": left + " is set"}[c.operator]
	}
	format := map[string]string{"==": "%s is %s", "!=": "%s is not %s", "<": "%s is older than %s", "<=": "%s is %s or older",
		">": "%s is newer than %s", ">=": "%s is %s or newer"}[c.operator]
	return fmt.Sprintf(format, left, right)
}

func (o operand) words(name func(string) string) string {
	if o.variable != "" {
		return name(o.variable)
	}
	return o.text
}
