package cert

import (
	"strconv"
	"strings"
	"time"

	"chancery/internal/fault"
)

// Duration is a time.Duration as people write and read it, with days: 90d, 1d12h, 5m, 200ms.
type Duration time.Duration

// durationUnit is a unit that durations are read in.
type durationUnit struct {
	name   string
	length time.Duration
	read   bool // and never written: a year has no one length, and nobody counts certificates in weeks
}

// durationUnits are the units, the longest first.
func durationUnits() []durationUnit {
	const day = 24 * time.Hour
	return []durationUnit{
		{"y", 365 * day, true}, {"w", 7 * day, true}, {"d", day, false}, {"h", time.Hour, false}, {"m", time.Minute, false},
		{"s", time.Second, false}, {"ms", time.Millisecond, false},
	}
}

// maxDuration keeps sums within what a time.Duration holds.
const maxDuration = 290 * 365 * 24 * time.Hour

// ParseDuration reads 90d, 12h, 5m, 30s, 200ms, 2w, 1y (of 365 days) and sums of them from the longest unit to the shortest, such
// as 1d12h. Negative durations are refused, and so are those over 290 years.
func ParseDuration(text string) (Duration, error) {
	refused := fault.New(fault.Invalid, "duration %.60q: write 90d, 12h, 5m, 30s, 2w or 1y, or a sum such as 1d12h", text)
	if text == "" {
		return 0, refused
	}
	var total time.Duration
	left := durationUnits()
	for rest := text; rest != ""; {
		digits := len(rest) - len(strings.TrimLeft(rest, "0123456789"))
		n, err := strconv.ParseInt(rest[:digits], 10, 64)
		if err != nil {
			return 0, refused
		}
		rest = rest[digits:]
		name := rest[:len(rest)-len(strings.TrimLeft(rest, "abcdefghijklmnopqrstuvwxyz"))]
		for len(left) > 0 && left[0].name != name {
			left = left[1:]
		}
		if len(left) == 0 || n > int64((maxDuration-total)/left[0].length) {
			return 0, refused
		}
		total += time.Duration(n) * left[0].length
		left, rest = left[1:], rest[len(name):]
	}
	return Duration(total), nil
}

// Std returns the duration as the standard library's type.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// String writes the duration as ParseDuration reads it, in days, hours, minutes, seconds and milliseconds.
func (d Duration) String() string {
	rest := time.Duration(d)
	if rest%time.Millisecond != 0 {
		return rest.String()
	}
	var b strings.Builder
	if rest < 0 {
		b.WriteByte('-')
		rest = -rest
	}
	for _, u := range durationUnits() {
		if n := rest / u.length; n > 0 && !u.read {
			b.WriteString(strconv.FormatInt(int64(n), 10) + u.name)
			rest %= u.length
		}
	}
	if b.Len() == 0 {
		return "0s"
	}
	return b.String()
}

// MarshalText writes d as String does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what ParseDuration reads.
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := ParseDuration(string(text))
	if err == nil {
		*d = parsed
	}
	return err
}
