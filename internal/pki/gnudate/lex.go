package gnudate

import (
	"math"
	"strings"
)

type kind int

const (
	end      kind = iota
	unsigned      // digits
	signed        // a sign and digits
	meridian      // am, pm
	month
	weekday
	unit  // year, month, week, ...
	shift // now, today, tomorrow, yesterday
	ordinal
	ago  // ago and hence: value -1 and 1
	zone // universal time
	tee  // the T between date and time
	punctuation
)

// token is a word, a number or a punctuation mark. digits counts the digits of a number, leading zeros included, since
// GNU date reads 0099 and 99 as different years. nanos is the fraction, with the sign of the number.
type token struct {
	kind       kind
	text       string
	value      int64
	digits     int
	nanos      int64
	fractional bool
	unit       unitKind
}

type unitKind int

const (
	years unitKind = iota
	months
	days
	hours
	minutes
	seconds
)

type word struct {
	name  string
	kind  kind
	value int64
	unit  unitKind
}

// Words of three letters, with or without a period behind them, match the first three letters of these.
var calendarWords = []word{
	{name: "JANUARY", kind: month, value: 1}, {name: "FEBRUARY", kind: month, value: 2},
	{name: "MARCH", kind: month, value: 3}, {name: "APRIL", kind: month, value: 4},
	{name: "MAY", kind: month, value: 5}, {name: "JUNE", kind: month, value: 6},
	{name: "JULY", kind: month, value: 7}, {name: "AUGUST", kind: month, value: 8},
	{name: "SEPTEMBER", kind: month, value: 9}, {name: "SEPT", kind: month, value: 9},
	{name: "OCTOBER", kind: month, value: 10}, {name: "NOVEMBER", kind: month, value: 11},
	{name: "DECEMBER", kind: month, value: 12},
	{name: "SUNDAY", kind: weekday, value: 0}, {name: "MONDAY", kind: weekday, value: 1},
	{name: "TUESDAY", kind: weekday, value: 2}, {name: "TUES", kind: weekday, value: 2},
	{name: "WEDNESDAY", kind: weekday, value: 3}, {name: "WEDNES", kind: weekday, value: 3},
	{name: "THURSDAY", kind: weekday, value: 4}, {name: "THUR", kind: weekday, value: 4},
	{name: "THURS", kind: weekday, value: 4}, {name: "FRIDAY", kind: weekday, value: 5},
	{name: "SATURDAY", kind: weekday, value: 6},
}

var otherWords = []word{
	{name: "AM", kind: meridian, value: 0}, {name: "A.M.", kind: meridian, value: 0},
	{name: "PM", kind: meridian, value: 12}, {name: "P.M.", kind: meridian, value: 12},
	{name: "UTC", kind: zone}, {name: "GMT", kind: zone}, {name: "UT", kind: zone}, {name: "Z", kind: zone},
	{name: "T", kind: tee},
	{name: "TOMORROW", kind: shift, value: 1}, {name: "YESTERDAY", kind: shift, value: -1},
	{name: "TODAY", kind: shift}, {name: "NOW", kind: shift},
	{name: "LAST", kind: ordinal, value: -1}, {name: "THIS", kind: ordinal, value: 0},
	{name: "NEXT", kind: ordinal, value: 1}, {name: "FIRST", kind: ordinal, value: 1},
	{name: "THIRD", kind: ordinal, value: 3}, {name: "FOURTH", kind: ordinal, value: 4},
	{name: "FIFTH", kind: ordinal, value: 5}, {name: "SIXTH", kind: ordinal, value: 6},
	{name: "SEVENTH", kind: ordinal, value: 7}, {name: "EIGHTH", kind: ordinal, value: 8},
	{name: "NINTH", kind: ordinal, value: 9}, {name: "TENTH", kind: ordinal, value: 10},
	{name: "ELEVENTH", kind: ordinal, value: 11}, {name: "TWELFTH", kind: ordinal, value: 12},
	{name: "AGO", kind: ago, value: -1}, {name: "HENCE", kind: ago, value: 1},
}

// Units may carry a plural s.
var unitWords = []word{
	{name: "YEAR", kind: unit, value: 1, unit: years}, {name: "MONTH", kind: unit, value: 1, unit: months},
	{name: "FORTNIGHT", kind: unit, value: 14, unit: days}, {name: "WEEK", kind: unit, value: 7, unit: days},
	{name: "DAY", kind: unit, value: 1, unit: days}, {name: "HOUR", kind: unit, value: 1, unit: hours},
	{name: "MINUTE", kind: unit, value: 1, unit: minutes}, {name: "MIN", kind: unit, value: 1, unit: minutes},
	{name: "SECOND", kind: unit, value: 1, unit: seconds}, {name: "SEC", kind: unit, value: 1, unit: seconds},
}

// namedZones are the zone names that GNU date knows and we refuse, so that the refusal can say what the word is.
const namedZones = " WET WEST BST ART BRT BRST NST NDT AST ADT CLT CLST EST EDT CST CDT MST MDT PST PDT AKST AKDT " +
	"HST HAST HADT SST WAT CET CEST MET MEZ MEST MESZ EET EEST CAT SAST EAT MSK MSD IST SGT KST JST GST NZST NZDT "

type lexer struct {
	text string
	pos  int
}

func lex(text string) ([]token, error) {
	l := lexer{text: text}
	var tokens []token
	for {
		l.skipBlanks()
		if l.pos >= len(text) {
			if len(tokens) == 0 {
				return nil, refuse(text, "is empty")
			}
			return append(tokens, token{kind: end}), nil
		}
		var t token
		var err error
		c := text[l.pos]
		switch {
		case isDigit(c):
			t, err = l.number("")
		case c == '+' || c == '-':
			l.pos++
			if c == '-' && l.joinsWords() {
				continue
			}
			l.skipBlanks()
			if l.pos >= len(text) || !isDigit(text[l.pos]) {
				return nil, refuse(text, "has a %q without a number", string(c))
			}
			t, err = l.number(string(c))
		case isAlpha(c):
			t, err = l.word()
		case c == '(':
			if !l.skipComment() {
				return nil, refuse(text, "has an unclosed comment")
			}
			continue
		case strings.IndexByte(":/,@", c) >= 0:
			l.pos++
			t = token{kind: punctuation, text: string(c)}
		default:
			return nil, refuse(text, "has an unexpected character %q", rune(c))
		}
		if err != nil {
			return nil, err
		}
		tokens = append(tokens, t)
	}
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }
func isAlpha(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }

func (l *lexer) skipBlanks() {
	for l.pos < len(l.text) && strings.IndexByte(" \t\n\v\f\r", l.text[l.pos]) >= 0 {
		l.pos++
	}
}

// joinsWords reports whether the dash just read is the first one of 28-Feb-2027. GNU date skips every sign that no number
// follows.
func (l *lexer) joinsWords() bool {
	return l.pos >= 2 && isDigit(l.text[l.pos-2]) && l.pos < len(l.text) && isAlpha(l.text[l.pos])
}

func (l *lexer) skipComment() bool {
	depth := 0
	for l.pos < len(l.text) {
		switch l.text[l.pos] {
		case '(':
			depth++
		case ')':
			depth--
		}
		l.pos++
		if depth == 0 {
			return true
		}
	}
	return false
}

// number reads digits and, behind a point or comma, the fraction. A negative fraction is kept as a negative amount of
// nanoseconds, cut (not rounded) towards the past as GNU date does.
func (l *lexer) number(sign string) (token, error) {
	start := l.pos
	t := token{kind: unsigned}
	for ; l.pos < len(l.text) && isDigit(l.text[l.pos]); l.pos++ {
		if t.value > (math.MaxInt64-9)/10 {
			return t, refuse(l.text, "has a number that is too large")
		}
		t.value = 10*t.value + int64(l.text[l.pos]-'0')
	}
	t.digits = l.pos - start
	excess := false
	if l.pos+1 < len(l.text) && (l.text[l.pos] == '.' || l.text[l.pos] == ',') && isDigit(l.text[l.pos+1]) {
		t.fractional = true
		l.pos++
		scale := int64(100_000_000)
		for ; l.pos < len(l.text) && isDigit(l.text[l.pos]); l.pos++ {
			t.nanos += scale * int64(l.text[l.pos]-'0')
			excess = excess || scale == 0 && l.text[l.pos] != '0'
			scale /= 10
		}
	}
	t.text = sign + l.text[start:l.pos]
	if sign != "" {
		t.kind = signed
	}
	if sign == "-" {
		t.value, t.nanos = -t.value, -t.nanos
		if excess {
			t.nanos--
		}
	}
	return t, nil
}

func (l *lexer) word() (token, error) {
	start := l.pos
	for l.pos < len(l.text) && (isAlpha(l.text[l.pos]) || l.text[l.pos] == '.') {
		l.pos++
	}
	text := l.text[start:l.pos]
	w, ok := lookup(strings.ToUpper(text))
	if !ok {
		return token{}, l.unknown(text)
	}
	return token{kind: w.kind, text: text, value: w.value, digits: 0, unit: w.unit}, nil
}

func lookup(upper string) (word, bool) {
	if short := strings.TrimSuffix(upper, "."); len(short) == 3 && !strings.Contains(short, ".") {
		for _, w := range calendarWords {
			if w.name[:3] == short {
				return w, true
			}
		}
	}
	for _, table := range [][]word{calendarWords, otherWords, unitWords} {
		for _, w := range table {
			if w.name == upper || w.kind == unit && w.name+"S" == upper {
				return w, true
			}
		}
	}
	if dotless := strings.ReplaceAll(upper, ".", ""); dotless != upper {
		for _, w := range otherWords {
			if w.kind == zone && len(w.name) > 1 && w.name == dotless {
				return w, true
			}
		}
	}
	return word{}, false
}

func (l *lexer) unknown(text string) error {
	upper := strings.ReplaceAll(strings.ToUpper(text), ".", "")
	switch {
	case upper == "TZ":
		return refuse(l.text, `has a TZ="..." rule, which is not read; write the offset instead, such as +02:00, or UTC`)
	case upper == "DST":
		return refuse(l.text, "has the summer-time mark DST, which is not read; write the offset instead, such as +02:00, "+
			"or UTC")
	case strings.Contains(namedZones, " "+upper+" "):
		return refuse(l.text, "has the zone name %s, which is not read because such names are ambiguous; "+
			"write the offset instead, such as -05:00, or UTC", text)
	case len(upper) == 1:
		return refuse(l.text, "has the military zone letter %s, which is not read; write the offset instead, such as "+
			"+01:00, or UTC", text)
	}
	return refuse(l.text, "has the unknown word %q", text)
}
