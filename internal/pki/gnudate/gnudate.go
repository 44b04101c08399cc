// Package gnudate reads the date text that certtool templates use: the language of GNU date(1)'s --date option, as far
// as a certificate can be dated by it.
//
// It reads absolute forms (ISO 8601 with a blank or a T, 28 Feb 2027, Feb 28 2027, 28-Feb-2027, 2/28/2027, 2027/02/28,
// 20270228, 12- and 24-hour times, UTC, GMT, Z and numeric zones, @seconds), weekdays (friday, next monday, third
// tuesday) and relative forms (next year, 3 weeks, 1 hour ago, tomorrow), alone or combined. What it reads, it reads as
// GNU date does: a weekday beside a date is ignored, 31 January plus one month is 3 March, a date without a time is
// midnight and a relative form alone keeps the present time of day. Text without a zone is in the zone of now.
//
// Divergences: GNU date accepts more, and guesses. Refused by name, because the guess would silently date a certificate
// wrongly or because the meaning depends on the machine:
//   - zone names other than UTC, GMT, UT and Z (CST, IST and BST have two or three meanings each), military letters,
//     DST and TZ="..." rules; a numeric offset says the same without doubt,
//   - bare numbers read as a time of day (2027 is 20:27 today, 5 is 05:00),
//   - a relative amount right behind a time without a zone (in 10:00 +3 days GNU date takes +3 for the zone and adds
//     one day),
//   - the empty text (GNU date: midnight of today), and years past 9999, which X.509 cannot say.
//
// One result differs: years, months and days from now keep the time of day where a summer time begins or ends between
// the two dates; GNU date is an hour off then.
//
// Parse is pure and safe for concurrent use.
package gnudate

import (
	"strings"
	"time"

	"chancery/internal/fault"
)

// maxLength bounds the text; the longest useful form has about 60 characters.
const maxLength = 256

// Parse returns the instant that text names, relative forms counted from now and zoneless ones in now's zone. A refusal
// is a fault.Invalid that names the form and what would pass.
func Parse(text string, now time.Time) (time.Time, error) {
	if len(text) > maxLength {
		return time.Time{}, fault.New(fault.TooLarge, "the date text has %d octets; at most %d are read", len(text), maxLength)
	}
	if strings.ContainsRune(text, 0) {
		return time.Time{}, refuse(text, "has a NUL in it")
	}
	tokens, err := lex(text)
	if err != nil {
		return time.Time{}, err
	}
	p := parser{text: text, tokens: tokens, rel: relative{}}
	if err := p.parse(); err != nil {
		return time.Time{}, err
	}
	return p.resolve(now)
}

func refuse(text, format string, args ...any) error {
	args = append([]any{text}, args...)
	return fault.New(fault.Invalid, "the date %q "+format, args...).
		WithHint(`a date such as "2027-02-28 16:24:41 UTC", "next monday" or "3 weeks" passes`)
}
