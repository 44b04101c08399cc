package gnudate

import "time"

// resolve turns what was read into an instant: the absolute fields first, checked, then the weekday, then years, months
// and days together, and hours, minutes and seconds last, as elapsed time.
func (p *parser) resolve(now time.Time) (time.Time, error) {
	if p.epoch {
		return p.within(time.Unix(p.second, p.nanos).In(now.Location()))
	}
	location := now.Location()
	if p.zones > 0 {
		location = time.FixedZone("", int(p.offset)*60)
	}
	y, m, d := now.Date()
	year, month, day := int64(y), int64(m), int64(d)
	if p.dates > 0 {
		month, day = p.month, p.day
		if p.year.digits > 0 {
			year = fullYear(p.year)
		}
	}
	if p.times == 0 && p.rels > 0 && p.dates == 0 && p.weekdays == 0 {
		hour, minute, second := now.Clock()
		p.hour, p.minute, p.second, p.nanos, p.meridian = int64(hour), int64(minute), int64(second), int64(now.Nanosecond()), -1
	}
	hour, ok := p.hour24()
	if !ok || p.minute > 59 || p.second > 59 {
		return time.Time{}, p.refuse("has a time of day that does not exist")
	}
	if year < 0 || year > 9999 {
		return time.Time{}, p.refuse("is outside the years 0 to 9999")
	}
	if month < 1 || month > 12 || day < 1 || day > 31 ||
		time.Date(int(year), time.Month(month), int(day), 0, 0, 0, 0, time.UTC).Day() != int(day) {
		return time.Time{}, p.refuse("names a day that does not exist")
	}
	if t := time.Date(int(year), time.Month(month), int(day), hour, int(p.minute), 0, 0, location); t.Hour() != hour ||
		t.Minute() != int(p.minute) {
		return time.Time{}, p.refuse("has a time of day that does not exist on that day in the zone %s", location)
	}
	if p.weekdays > 0 && p.dates == 0 {
		today := int64(time.Date(int(year), time.Month(month), int(day), 0, 0, 0, 0, time.UTC).Weekday())
		ordinal := p.weekdayOrdinal
		if ordinal > 0 && today != p.weekday {
			ordinal--
		}
		day += (p.weekday-today+7)%7 + 7*ordinal
		y, m, d := time.Date(int(year), time.Month(month), int(day), 0, 0, 0, 0, time.UTC).Date()
		year, month, day = int64(y), int64(m), int64(d) // months are counted from the weekday's own date
	}
	const span = 20_000 // years: more than any result may be away from now
	r := p.rel
	if abs(r.years) > span || abs(r.months) > 12*span || abs(r.days) > 366*span || abs(r.hours) > 24*366*span ||
		abs(r.minutes) > 60*24*366*span {
		return time.Time{}, p.refuse("is outside the years 0 to 9999")
	}
	t := time.Date(int(year+r.years), time.Month(month+r.months), int(day+r.days), hour, int(p.minute), int(p.second),
		int(p.nanos), location)
	elapsed := r.hours*3600 + r.minutes*60 + r.seconds
	if abs(elapsed) > limit {
		return time.Time{}, p.refuse("is outside the years 0 to 9999")
	}
	return p.within(time.Unix(t.Unix()+elapsed, int64(t.Nanosecond())+r.nanos).In(location))
}

func abs(n int64) int64 { return max(n, -n) }

// fullYear gives two-digit years their century as POSIX does: 69 to 99 are in the twentieth.
func fullYear(t token) int64 {
	switch {
	case t.digits != 2 || t.value < 0:
		return t.value
	case t.value < 69:
		return t.value + 2000
	}
	return t.value + 1900
}

func (p *parser) hour24() (int, bool) {
	if p.times == 0 || p.meridian < 0 {
		return int(p.hour), p.hour < 24
	}
	if p.hour < 1 || p.hour > 12 {
		return 0, false
	}
	return int(p.hour%12 + p.meridian), true
}

func (p *parser) within(t time.Time) (time.Time, error) {
	if y := t.UTC().Year(); y < 0 || y > 9999 {
		return time.Time{}, p.refuse("is outside the years 0 to 9999")
	}
	return t, nil
}
