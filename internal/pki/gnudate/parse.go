package gnudate

import "strings"

// relative is the sum of all relative amounts.
type relative struct {
	years, months, days, hours, minutes, seconds, nanos int64
}

// limit bounds every amount and sum, so that no arithmetic here can overflow; it is over ten thousand years in seconds.
const limit = 400_000_000_000

type parser struct {
	text   string
	tokens []token
	pos    int

	epoch                         bool
	dates, times, weekdays, zones int
	rels                          int
	year                          token
	month, day                    int64
	hour, minute, second, nanos   int64
	meridian                      int64 // -1: 24 hours
	weekday, weekdayOrdinal       int64
	offset                        int64 // of the zone, in minutes east of UTC
	rel                           relative
}

func (p *parser) peek(n int) token {
	if p.pos+n >= len(p.tokens) {
		return token{kind: end}
	}
	return p.tokens[p.pos+n]
}

func (p *parser) is(n int, kinds ...kind) bool {
	for i, k := range kinds {
		if p.peek(n+i).kind != k {
			return false
		}
	}
	return true
}

func (p *parser) mark(n int, text string) bool {
	t := p.peek(n)
	return t.kind == punctuation && t.text == text
}

func (p *parser) refuse(format string, args ...any) error { return refuse(p.text, format, args...) }

func (p *parser) parse() error {
	if p.mark(0, "@") {
		return p.seconds()
	}
	for p.peek(0).kind != end {
		if err := p.item(); err != nil {
			return err
		}
	}
	for _, c := range []struct {
		n    int
		what string
	}{{p.dates, "dates"}, {p.times, "times of day"}, {p.weekdays, "weekdays"}, {p.zones, "zones"}} {
		if c.n > 1 {
			return p.refuse("has %d %s; one is allowed", c.n, c.what)
		}
	}
	return nil
}

func (p *parser) seconds() error {
	t := p.peek(1)
	if t.kind != signed && t.kind != unsigned || p.peek(2).kind != end {
		return p.refuse("must have one number of seconds behind the @, and nothing else")
	}
	if t.value > limit || t.value < -limit {
		return p.refuse("is outside the years 0 to 9999")
	}
	p.epoch, p.second, p.nanos = true, t.value, t.nanos
	return nil
}

// item reads one date, time, zone, weekday or relative amount. The order of the cases is the grammar's: a number is what
// the tokens behind it make of it.
func (p *parser) item() error {
	t := p.peek(0)
	switch t.kind {
	case unsigned:
		return p.number()
	case signed:
		if p.peek(1).kind != unit {
			return p.refuse("has the number %s in a place where it means nothing", t.text)
		}
		return p.amount(t, 2)
	case unit:
		return p.amount(token{value: 1}, 1)
	case ordinal:
		switch {
		case p.is(1, unit):
			return p.amount(t, 2)
		case p.is(1, weekday):
			p.pos++
			return p.setWeekday(t.value)
		}
		return p.refuse("has %q without a weekday or unit behind it", t.text)
	case shift:
		p.pos++
		p.rels++
		return p.add(days, t.value, 0)
	case weekday:
		if err := p.setWeekday(0); err != nil {
			return err
		}
		if p.mark(0, ",") {
			p.pos++
		}
		return nil
	case month:
		return p.monthFirst()
	case zone:
		return p.universal()
	}
	return p.refuse("has %q in a place where it means nothing", t.text)
}

func (p *parser) number() error {
	t := p.peek(0)
	if t.fractional {
		if p.peek(1).kind == unit {
			return p.amount(t, 2)
		}
		return p.refuse("has the fraction %s in a place where it means nothing", t.text)
	}
	switch {
	case p.mark(1, ":"), p.is(1, meridian):
		return p.clock()
	case p.mark(1, "/"):
		return p.slashes()
	case p.is(1, month, signed): // 28-Feb-2027
		return p.setDate(negate(p.peek(2)), p.peek(1).value, t.value, 3)
	case p.is(1, month, unsigned):
		return p.setDate(p.peek(2), p.peek(1).value, t.value, 3)
	case p.is(1, month):
		return p.setDate(token{}, p.peek(1).value, t.value, 2)
	case p.is(1, signed, signed):
		return p.isoDate()
	case p.is(1, weekday):
		p.pos++
		return p.setWeekday(t.value)
	case p.is(1, unit):
		return p.amount(t, 2)
	case p.is(1, signed, unit):
		p.pos++
		if err := p.bare(t); err != nil {
			return err
		}
		return p.amountNow()
	case p.is(1, signed):
		return p.clock() // 10 +0200
	}
	p.pos++
	return p.bare(t)
}

func negate(t token) token {
	t.value = -t.value
	return t
}

// bare reads a number that nothing explains: the year behind a date and a time, or YYYYMMDD.
func (p *parser) bare(t token) error {
	switch {
	case p.dates > 0 && p.year.digits == 0 && p.rels == 0 && (p.times > 0 || t.digits > 2):
		p.year = t
		return nil
	case t.digits == 8 || t.digits == 6:
		p.dates++
		p.day, p.month = t.value%100, t.value/100%100
		p.year = token{value: t.value / 10000, digits: t.digits - 4}
		return nil
	}
	return p.refuse("has the bare number %s, which GNU date would take for a time of day; write a time as 16:24 and a "+
		"date as 2027-02-28", t.text)
}

func (p *parser) isoDate() error {
	y, m, d := p.peek(0), p.peek(1), p.peek(2)
	if m.text[0] == '+' || d.text[0] == '+' || m.fractional || d.fractional {
		return p.refuse("has %s%s%s where a date such as 2027-02-28 is expected", y.text, m.text, d.text)
	}
	if err := p.setDate(y, -m.value, -d.value, 3); err != nil {
		return err
	}
	if p.is(0, tee, unsigned) {
		p.pos++
		if !p.mark(1, ":") || p.peek(0).fractional {
			return p.refuse("has no minutes behind the T; write T16:24 or T16:24:41")
		}
		err := p.clock()
		if err == nil && p.meridian >= 0 {
			return p.refuse("has am or pm behind an ISO 8601 time; write T16:24")
		}
		return err
	}
	return nil
}

func (p *parser) slashes() error {
	a, b, c := p.peek(0), p.peek(2), p.peek(4)
	if b.kind != unsigned || b.fractional {
		return p.refuse("has a slash without a number behind it")
	}
	if !p.mark(3, "/") {
		return p.setDate(token{}, a.value, b.value, 3)
	}
	if c.kind != unsigned || c.fractional {
		return p.refuse("has a slash without a number behind it")
	}
	if a.digits >= 4 {
		return p.setDate(a, b.value, c.value, 5)
	}
	return p.setDate(c, a.value, b.value, 5)
}

func (p *parser) monthFirst() error {
	m, d, y := p.peek(0), p.peek(1), p.peek(2)
	if d.fractional {
		return p.refuse("has the fraction %s where a day of the month is expected", d.text)
	}
	switch {
	case p.is(1, signed, signed):
		if d.text[0] == '+' || y.text[0] == '+' || y.fractional {
			return p.refuse("has %s where a day and a year such as -28-2027 are expected", d.text+y.text)
		}
		return p.setDate(negate(y), m.value, -d.value, 3)
	case p.is(1, unsigned) && p.mark(2, ",") && p.is(3, unsigned):
		return p.setDate(p.peek(3), m.value, d.value, 4)
	case p.is(1, unsigned):
		return p.setDate(token{}, m.value, d.value, 2)
	}
	return p.refuse("has the month %s without a day behind it", m.text)
}

func (p *parser) setDate(year token, month, day int64, used int) error {
	if year.fractional || strings.HasPrefix(year.text, "+") {
		return p.refuse("has %s where a year is expected", year.text)
	}
	p.dates++
	p.year, p.month, p.day = year, month, day
	p.pos += used
	return nil
}

func (p *parser) setWeekday(ordinal int64) error {
	if ordinal > 9999 {
		return p.refuse("is outside the years 0 to 9999")
	}
	p.weekdays++
	p.weekday, p.weekdayOrdinal = p.peek(0).value, ordinal
	p.pos++
	return nil
}

// clock reads a time of day with its meridian or zone.
func (p *parser) clock() error {
	p.times++
	p.meridian = -1
	p.hour, p.minute, p.second, p.nanos = p.peek(0).value, 0, 0, 0
	p.pos++
	for _, field := range []*int64{&p.minute, &p.second} {
		if !p.mark(0, ":") {
			break
		}
		t := p.peek(1)
		if t.kind != unsigned || t.fractional && field == &p.minute {
			return p.refuse("has no whole number behind a colon; write a time as 16:24:41")
		}
		*field = t.value
		p.nanos = t.nanos
		p.pos += 2
	}
	if p.is(0, meridian) {
		p.meridian = p.peek(0).value
		p.pos++
		return nil
	}
	if !p.is(0, signed) {
		return nil
	}
	if p.is(1, unit) {
		return p.refuse("has the amount %s %s right behind a time, where GNU date would take %s for the zone; write UTC "+
			"between them",
			p.peek(0).text, p.peek(1).text, p.peek(0).text)
	}
	return p.zoneOffset()
}

// zoneOffset reads +2, +02, +0200 or +02:00.
func (p *parser) zoneOffset() error {
	t := p.peek(0)
	p.pos++
	n := t.value
	switch {
	case t.fractional:
		return p.refuse("has the zone %s, which is not an offset such as +02:00", t.text)
	case p.mark(0, ":") && p.is(1, unsigned) && !p.peek(1).fractional:
		m := p.peek(1).value
		if n > 99 || n < -99 || m > 99 {
			return p.refuse("has a zone that is more than 24 hours from UTC")
		}
		if t.text[0] == '-' {
			m = -m
		}
		n = n*60 + m
		p.pos += 2
	case t.digits <= 2:
		n *= 60
	default:
		n = n/100*60 + n%100
	}
	if n > 24*60 || n < -24*60 {
		return p.refuse("has a zone that is more than 24 hours from UTC")
	}
	p.zones++
	p.offset = n
	return nil
}

// universal reads UTC, and UTC+3 (three hours east of it).
func (p *parser) universal() error {
	p.pos++
	if p.is(0, signed) && !p.is(1, unit) {
		return p.zoneOffset()
	}
	p.zones++
	p.offset = 0
	if p.is(0, signed) {
		return p.amountNow()
	}
	return nil
}

// amountNow reads a signed amount right behind a zone or a bare number, where GNU date knows no ago.
func (p *parser) amountNow() error {
	if p.is(2, ago) {
		return p.refuse("has %q behind %s %s, where GNU date refuses it; write the other sign", p.peek(2).text,
			p.peek(0).text, p.peek(1).text)
	}
	return p.amount(p.peek(0), 2)
}

// amount reads n units, then ago or hence.
func (p *parser) amount(n token, used int) error {
	u := p.peek(used - 1)
	p.pos += used
	if n.fractional && u.unit != seconds {
		return p.refuse("has the fraction %s of a unit; only seconds have fractions", n.text)
	}
	if n.value > limit || n.value < -limit {
		return p.refuse("is outside the years 0 to 9999")
	}
	value, nanos := n.value*u.value, n.nanos
	if p.is(0, ago) {
		value, nanos = value*p.peek(0).value, nanos*p.peek(0).value
		p.pos++
	}
	p.rels++
	return p.add(u.unit, value, nanos)
}

func (p *parser) add(u unitKind, value, nanos int64) error {
	r := &p.rel
	field := map[unitKind]*int64{years: &r.years, months: &r.months, days: &r.days, hours: &r.hours,
		minutes: &r.minutes, seconds: &r.seconds}[u]
	*field += value
	r.nanos += nanos
	if *field > limit*14 || *field < -limit*14 {
		return p.refuse("is outside the years 0 to 9999")
	}
	return nil
}
