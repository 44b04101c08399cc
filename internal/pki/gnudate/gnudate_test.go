package gnudate

import (
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"chancery/internal/fault"
)

// accepted are read by GNU date and by us, and must mean the same.
var accepted = []string{
	"2027-02-28", "2027-2-8", "27-02-28", "2027-02-28 16:24", "2027-02-28 16:24:41", "2027-02-28 16:24:41 UTC",
	"2027-02-28 16:24:41 utc", "2027-02-28 16:24:41 U.T.C.", "2027-02-28 16:24:41 GMT", "2027-02-28 16:24:41 UT",
	"2027-02-28 16:24:41Z", "2027-02-28 16:24:41 z", "2027-02-28T16:24:41Z", "2027-02-28t16:24:41z", "2027-02-28T16:24",
	"2027-02-28T16:24:41+02:00", "2027-02-28 16:24:41 +0200", "2027-02-28 16:24:41 -0530", "2027-02-28 16:24:41 +2",
	"2027-02-28 16:24:41 -05:30", "2027-02-28 16:24 +02", "2027-02-28 10 +0200", "2027-02-28 10:00 +2400",
	"2027-02-28 16:24:41.5", "2027-02-28 16:24:41,25 UTC", "2027-02-28 16:24:41.999999999999", "16:24 2027-02-28",
	"UTC 16:24 2027-02-28", "2027-02-28 UTC+3", "2027-02-28 10:00 UTC+3:30", "2027-02-28 10:00 UTC -2",
	"2027-02-28 12am", "2027-02-28 12pm", "2027-02-28 1 am", "2027-02-28 11:59 PM", "2027-02-28 12:30:15 p.m.", "2027-02-28 12:00 A.M.",
	"28 Feb 2027", "28 February 2027 10:00", "28 feb. 2027", "28-Feb-2027", "28-feb-27", "Feb-28-2027", "Feb 28 2027", "Feb 28, 2027",
	"February 28, 2027 16:24:41 UTC", "Feb 28 16:24:41 2027", "Sun Feb 28 16:24:41 UTC 2027", "Sun, 28 Feb 2027 16:24:41 +0000",
	"Sept 3 2027", "3 SEP 2027", "3 May 2027", "31 December 9999", "9999-12-31 23:59:59 UTC", "9999-12-31T23:59:59Z",
	"1 Jan 69", "1 Jan 68", "1 Jan 99", "1 Jan 00", "1970-01-01", "1969-12-31 23:59:59", "1950-01-01 UTC", "0000-01-01", "001-01-01",
	"2/28/2027", "2/28/27", "02/28/2027 16:24", "2027/02/28", "2027/2/8 16:24", "20270228", "270228", "20270228 16:24:41 UTC", "2027-001-01",
	"2028-02-29", "2000-02-29", "29 Feb 2028", "@0", "@1803831881", "@-1", "@1.5", "@-1.5", "@+86400", " @ 86400 ", "@253402300799",
	"2027-02-28 (the last day) 16:24", "(nested (comment)) 2027-02-28", "\t2027-02-28\n16:24:41\v",
	"2027-02-28 monday", "2027-02-28 next monday", "Monday, 2027-02-28", "2027-02-28 friday 16:24",
	"2027-02-28 tomorrow", "2027-02-28 yesterday", "2027-02-28 now", "2027-02-28 today", "2027-02-28 today tomorrow",
	"2027-02-28 1 year", "2027-02-28 next year", "2027-02-28 last year", "2027-02-28 this year", "2027-02-28 year", "2027-02-28 10 years ago",
	"2027-02-28 1 month", "2027-01-31 1 month", "2027-03-31 1 month ago", "2027-01-31 13 months", "2027-02-28 last month", "2027-02-28 MONTHS",
	"2028-02-29 1 year", "2028-02-29 next year", "2028-02-29 4 years", "2027-12-31 1 day", "2027-02-28 3 weeks", "2027-02-28 week ago",
	"2027-02-28 1 fortnight", "2027-02-28 2 fortnights ago", "2027-02-28 1 hour ago", "2027-02-28 25 hours", "2027-02-28 90 minutes",
	"2027-02-28 90 min", "2027-02-28 5 mins ago", "2027-02-28 61 secs", "2027-02-28 next second", "2027-02-28 second ago",
	"2027-02-28 3 days ago 2 hours", "2027-02-28 3 days ago 2 hours ago", "2027-02-28 1 day hence", "2027-02-28 +3 days", "2027-02-28 -3 days",
	"2027-02-28 - 3 days", "2027-02-28 + 3 days", "2027-02-28 -3 days ago", "2027-02-28 +1 year -1 month +1 day", "2027-02-28 10:00 UTC +3 days",
	"2027-02-28 10:00 3 days", "2027-02-28 10:00Z -1 hour", "2027-02-28 1.5 seconds", "2027-02-28 -1.5 sec", "2027-02-28 +0.5 sec ago",
	"2027-02-28 third week", "2027-02-28 twelfth month", "3 days 2027-02-28", "last year 2027-02-28", "1 month ago 2027-03-31",
	"2027-02-28 1 year 2 months 3 weeks 4 days 5 hours 6 minutes 7 seconds", "2027-02-28 00:00:00 UTC 365 days",
	"2027-02-28 5 monday", "28 Feb 2027 3 days", "2027-02-28 16:24 tomorrow", "2027-02-28 1000000 hours", "1 Mar 2027 1 day ago",
}

// fromNow depend on the present; GNU date is run between two readings of the clock.
var fromNow = []string{
	"now", "today", "tomorrow", "yesterday", "next year", "last year", "next month", "last month", "this month", "1 hour ago", "3 weeks", "week",
	"2 fortnights", "365 days", "+365 days", "-1 day", "1 year 1 day ago", "10 minutes", "1.5 seconds", "second",
	"monday", "tue", "wednesday", "thurs", "fri.", "saturday", "sun", "next monday", "last tuesday", "this wednesday", "third thursday",
	"2 friday", "12 sunday", "friday 16:24", "next friday 16:24:41 UTC", "monday 3 days", "next monday 1 week ago", "sunday -1 day", "7 monday next month",
	"16:24", "4pm", "4:24 p.m.", "16:24 UTC", "tomorrow 16:24", "yesterday 08:00 +0200", "16:24 next year", "UTC", "next year UTC", "UTC+3",
	"UTC +3 days", "28 Feb", "Feb 28", "2/28", "28 Feb 3 days", "16:24 UTC 1 Mar", "feb 28 next year", "12 am", "12 pm (noon)",
}

// bothRefuse are refused by GNU date and by us.
var bothRefuse = []string{
	"2025-02-29", "29 Feb 2025", "Feb 30 2027", "2027-13-01", "2027-00-01", "2027-01-00", "2027-01-32", "31 Apr 2027", "2/29/2027", "20270229",
	"2027-02-28 24:00", "2027-02-28 25:00", "2027-02-28 16:60", "2027-02-28 16:24:60", "2027-02-28 13pm", "2027-02-28 0am", "2027-02-28T10",
	"2027-02-28 10:00 +25", "2027-02-28 10:00 +2401", "2027-02-28 10:00 +24:01", "2027-02-28 10:00 +100:00", "12:00 12:00 2027-02-28",
	"2027-02-28 2027-03-01", "monday tuesday", "UTC UTC", "16:24Z UTC", "next", "soon", "christmas", "2027-02-28 yrs", "2027-02-28 mondays",
	"28 Feb 10:00", "Feb 2027", "Feb", "@", "@x", "@0 tomorrow", "@1 UTC", "2027-02-28;", "feb - 28", "- 2027-02-28", "1 Mar 16:24 UTC", "ago", "day ago ago",
	"2027-02-28 1.5 days", "1.5", "am", ":", "2027/", "16:", "16:24:", "99999999999999999999", "+3", "1/2/3/4",
	"9999999999999999 years", "28.Feb.2027", "Feb 28 2027 2028 16:00", "2027-02-28 16:24:41 UTC UTC", "2027-W08-7", "2027-059", "1e9", "½",
	"99999999999 days", "2027-02-28 16.24", "Feb 28,", "UTC +3 days ago", "Feb 28 2027 +3 days ago",
}

// weRefuse are read by GNU date; we name why we do not read them.
var weRefuse = map[string]string{
	"":                         "empty",
	"  ":                       "empty",
	"(only a comment)":         "empty",
	"2027":                     "bare number",
	"5":                        "bare number",
	"1624":                     "bare number",
	"2027-02-28 1624":          "bare number",
	"2027-02-28 5":             "bare number",
	"tomorrow 8":               "bare number",
	"2027-02-28 10:00 +3 days": "write UTC between them",
	"10:00 -1 hour":            "write UTC between them",
	"2027-02-28 10:00 EST":     "zone name EST",
	"2027-02-28 10:00 CET":     "zone name CET",
	"10:00 IST":                "zone name IST",
	"2027-02-28 10:00 A":       "military zone letter A",
	"2027-02-28 10:00 M":       "military zone letter M",
	"2027-02-28 10:00 UTC DST": "summer-time mark DST",
	`TZ="UTC" 2027-02-28`:      `TZ="..." rule`,
	`TZ="Europe/Paris" 10:00`:  `TZ="..." rule`,
	"10000-01-01":              "years 0 to 9999",
	"@253402300800":            "years 0 to 9999",
	"2027-02-28 9000 years":    "years 0 to 9999",
	"2027-02-28 (unclosed":     "unclosed comment",
	"T":                        "means nothing",
	"T16:24":                   "means nothing",
	"2027-":                    "without a number",
	"+":                        "without a number",
	"10 days - ago":            "without a number",
}

func gnu(t testing.TB, text string) (seconds int64, ok bool) {
	t.Helper()
	cmd := exec.Command("date", "-u", "-d", text, "+%s")
	cmd.Env = []string{"LC_ALL=C", "TZ=UTC0"}
	out, err := cmd.Output()
	if _, refused := err.(*exec.ExitError); refused {
		return 0, false
	}
	if err != nil {
		t.Fatalf("run date: %v", err)
	}
	seconds, err = strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	if err != nil {
		t.Fatalf("date printed %q", out)
	}
	return seconds, true
}

func TestDateIsGNU(t *testing.T) {
	out, err := exec.Command("date", "--version").Output()
	if err != nil || !strings.Contains(string(out), "GNU coreutils") {
		t.Fatalf("the tests compare with GNU date, found %q (%v)", out, err)
	}
}

func TestAgreesWithGNUDate(t *testing.T) {
	if len(accepted) < 140 || len(bothRefuse) < 60 || len(fromNow) < 50 || len(weRefuse) < 20 {
		t.Fatalf("tables have %d, %d, %d, %d rows", len(accepted), len(bothRefuse), len(fromNow), len(weRefuse))
	}
	now := time.Now().UTC()
	for _, text := range accepted {
		want, ok := gnu(t, text)
		got, err := Parse(text, now)
		if !ok || err != nil || got.Unix() != want {
			t.Errorf("%q: got %v (%v), GNU date %v (%v)", text, got, err, time.Unix(want, 0).UTC(), ok)
		}
	}
	for _, text := range fromNow {
		before := time.Now().UTC()
		want, ok := gnu(t, text)
		low, err := Parse(text, before)
		high, err2 := Parse(text, time.Now().UTC())
		if !ok || err != nil || err2 != nil || want < low.Unix() || want > high.Unix() {
			t.Errorf("%q: got %v to %v (%v), GNU date %v (%v)", text, low, high, err, time.Unix(want, 0).UTC(), ok)
		}
	}
}

func TestRefusesWhatGNUDateRefuses(t *testing.T) {
	for _, text := range bothRefuse {
		if s, ok := gnu(t, text); ok {
			t.Errorf("%q: GNU date reads it as %v", text, time.Unix(s, 0).UTC())
		}
		if got, err := Parse(text, time.Now()); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: got %v (%v), want a refusal", text, got, err)
		}
	}
	if _, err := Parse(strings.Repeat(" ", 300), time.Now()); !fault.Is(err, fault.TooLarge) {
		t.Errorf("300 blanks: %v", err)
	}
}

func TestRefusesByName(t *testing.T) {
	for text, want := range weRefuse {
		if _, ok := gnu(t, text); !ok {
			t.Errorf("%q: GNU date refuses it too; move it to the other table", text)
		}
		got, err := Parse(text, time.Now())
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v (%v), want a refusal with %q", text, got, err, want)
		}
	}
}

// Where now has a zone of its own, text without a zone is in it, and a time that the zone skips does not exist.
func TestZoneOfNow(t *testing.T) {
	berlin := time.FixedZone("", 3600)
	now := time.Date(2027, 2, 28, 0, 30, 0, 0, berlin) // still the 27th in UTC
	for text, want := range map[string]string{
		"today": "2027-02-27T23:30:00Z", "tomorrow 10:00": "2027-03-01T09:00:00Z", "28 Feb": "2027-02-27T23:00:00Z",
		"2027-06-01 12:00": "2027-06-01T11:00:00Z", "2027-06-01 12:00 UTC": "2027-06-01T12:00:00Z", "sunday": "2027-02-27T23:00:00Z",
	} {
		got, err := Parse(text, now)
		if err != nil || got.UTC().Format(time.RFC3339) != want {
			t.Errorf("%q: got %v (%v), want %s", text, got.UTC(), err, want)
		}
	}
}

func FuzzGNUDate(f *testing.F) {
	for _, table := range [][]string{accepted, fromNow, bothRefuse} {
		for _, text := range table {
			f.Add(text)
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		before := time.Now().UTC()
		low, err := Parse(text, before)
		if err != nil {
			if k := fault.KindOf(err); k != fault.Invalid && k != fault.TooLarge {
				t.Fatalf("%q: %v is no refusal", text, err)
			}
			return
		}
		want, ok := gnu(t, text)
		high, err := Parse(text, time.Now().UTC())
		if !ok || err != nil || want < low.Unix() || want > high.Unix() {
			t.Fatalf("%q: got %v to %v (%v), GNU date %v (%v)", text, low, high, err, time.Unix(want, 0).UTC(), ok)
		}
		again, err := Parse(fmt.Sprintf("%04d%s", low.UTC().Year(), low.UTC().Format("-01-02T15:04:05.999999999Z")), before)
		if err != nil || !again.Equal(low) {
			t.Fatalf("%q: %v reads again as %v (%v)", text, low, again, err)
		}
	})
}

// In a zone of its own, too, we agree with GNU date.
func TestAgreesWithGNUDateInAZone(t *testing.T) {
	india := time.FixedZone("", 5*3600+1800)
	compared := 0
	for _, text := range append(append([]string{}, accepted...), fromNow...) {
		cmd := exec.Command("date", "-d", text, "+%s")
		cmd.Env = []string{"LC_ALL=C", "TZ=XXX-5:30"}
		low, err := Parse(text, time.Now().In(india))
		out, gnuErr := cmd.Output()
		high, err2 := Parse(text, time.Now().In(india))
		if text == "0000-01-01" { // the year -1 in UTC
			continue
		}
		want, _ := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
		if gnuErr != nil || err != nil || err2 != nil || want < low.Unix() || want > high.Unix() {
			t.Errorf("%q: got %v to %v (%v), GNU date %v (%v)", text, low, high, err, time.Unix(want, 0).In(india), gnuErr)
		}
		compared++
	}
	if compared < 190 {
		t.Fatalf("only %d texts were compared", compared)
	}
}
